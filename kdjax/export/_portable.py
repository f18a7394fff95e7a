"""A program without parts for one platform only, and without rules for derivatives: what other formats can hold."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from kdjax._types import Tree

_INLINED = ("jit", "call", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")
"""Calls of a part of the program. Their bodies say all that is computed: the rest are names and derivatives."""


def for_any_platform(function: Callable[..., Tree]) -> Callable[..., Tree]:
    """The same function, with every choice of `jax.lax.platform_dependent` made: its default.

    A choice that has no default is made as for the platform that it names first.

    Args:
      function: of arrays or trees of arrays; traced anew at each call.

    Example:
      >>> import jax.numpy as jnp
      >>> def root(x):
      ...     return jax.lax.platform_dependent(x, cpu=lambda x: x**0.5, default=jnp.sqrt)
      >>> jax.make_jaxpr(for_any_platform(root))(4.0)
      { lambda ; a:f32[]. let b:f32[] = sqrt a in (b,) }
    """

    def portable(*arguments: Tree) -> Tree:
        program, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = _evaluated(program.jaxpr, program.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return portable


def _evaluated(program: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip((*program.constvars, *program.invars), (*constants, *arguments), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in program.eqns:
        results = _results(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in program.outvars]


def _results(equation: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
    name, settings = equation.primitive.name, equation.params
    if name == "platform_index":
        return [settings["platforms"].index(None) if None in settings["platforms"] else 0]
    if name == "cond" and settings.get("branches_platforms") is not None and isinstance(inputs[0], int):
        chosen = settings["branches"][inputs[0]]
        return _evaluated(chosen.jaxpr, chosen.consts, inputs[1:])
    if name == "select_n" and isinstance(equation.invars[0], Literal):
        return [inputs[1 + int(inputs[0])]]
    if name in _INLINED:
        body = next(settings[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in settings)
        closed = isinstance(body, ClosedJaxpr)
        return _evaluated(body.jaxpr if closed else body, body.consts if closed else (), inputs)
    results = equation.primitive.bind(*inputs, **_resolved(settings))
    return results if equation.primitive.multiple_results else [results]


def _resolved(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The bodies of loops and branches, with the same done in them."""

    def resolved(value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            shapes = [jax.ShapeDtypeStruct(one.shape, one.dtype, weak_type=one.weak_type) for one in value.in_avals]
            return jax.make_jaxpr(lambda *given: partial(_evaluated, value.jaxpr, value.consts)(given))(*shapes)
        if isinstance(value, tuple) and any(isinstance(one, ClosedJaxpr) for one in value):
            return tuple(map(resolved, value))
        return value

    return {name: resolved(value) for name, value in settings.items()}

"""A network computed in another floating-point type, its weights and outputs as they are."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from kdjax._apply import run
from kdjax._types import Apply, Outputs, Rng, Tree

PRODUCTS = "dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"


def computed_in(apply: Apply, dtype: Any) -> Apply:
    """The same network with parameters and inputs cast to `dtype` on the way in, and what it returns to float32.

    The optimiser goes on seeing the parameters as they are, in float32: half precision for the products, full precision
    for the sums of many small updates.

    Args:
      apply: any `Apply`. Its layers must compute in the type of their parameters or of what they get, as `kdjax.models` and
        Flax's layers with ``dtype=None`` do; a layer with a type of its own casts back to that, and nothing is gained.
        `product_types` tells.
      dtype: such as ``jnp.bfloat16``.

    Returns:
      An `Apply` of the same weights. The model_state comes back in its own types.

    Raises:
      ValueError: if `dtype` is no floating-point type.

    Example:
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs @ params, {"type": jnp.zeros(len(inputs), inputs.dtype)}), model_state
      >>> outputs, _ = computed_in(network, jnp.bfloat16)(jnp.ones((2, 3)), {}, jnp.ones((4, 2)), train=False)
      >>> outputs.logits.dtype, float(outputs.logits[0, 0])
      (dtype('float32'), 2.0)

    Reference:
      Micikevicius et al., Mixed Precision Training, 2018, section 3.1 (a float32 master copy of the weights).
      https://arxiv.org/abs/1710.03740
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating-point type; got {dtype!r}.")

    def cast(params: Tree, model_state: Tree, inputs: Any, *, train: bool, rng: Rng = None) -> tuple[Outputs, Tree]:
        outputs, new_state = run(apply, _cast(params, dtype), model_state, _cast(inputs, dtype), train=train, rng=rng)
        return _cast(outputs, jnp.float32), jax.tree.map(_as, new_state, model_state)

    return cast


def product_types(function: Callable[..., Any], *arguments: Any) -> set[str]:
    """The types of what a function's matrix products and convolutions multiply, by name; nothing is computed.

    Args:
      function: of arrays or pytrees of arrays, such as a network with its weights and inputs.
      *arguments: arrays, or `jax.ShapeDtypeStruct` in their place.

    Example:
      >>> sorted(product_types(lambda x: (x @ x).astype(jnp.bfloat16) @ jnp.ones((2, 2), jnp.bfloat16), jnp.ones((2, 2))))
      ['bfloat16', 'float32']
    """
    return set(_products(jax.make_jaxpr(function)(*arguments)))


def _products(program: Any) -> Iterator[str]:
    """Of a jaxpr and all that it calls; of anything else none."""
    for equation in getattr(getattr(program, "jaxpr", program), "eqns", ()):
        if equation.primitive.name in PRODUCTS:
            yield from (str(factor.aval.dtype) for factor in equation.invars[:2])
        for inner in jax.tree.leaves([*equation.params.values()]):
            yield from _products(inner)


def _cast(tree: Tree, dtype: Any) -> Tree:
    """Floating-point leaves in `dtype`; the others, such as token numbers, as they are."""
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf, tree
    )


def _as(new: Any, old: Any) -> Any:
    return new.astype(old.dtype)

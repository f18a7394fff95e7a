"""A tree's leaves by path, such as ``stage1/norm/scale``: chosen by name, their bits on the host, and the way back."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from hashlib import blake2b
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from kdjax import _processes
from kdjax._types import Tree

_LISTED = 5  # names in an error before "and n more"


def by_path(tree: Tree) -> dict[str, Any]:
    """Leaves under names such as ``params/Conv_0/kernel``, in the tree's own order."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in leaves:
            raise ValueError(f"tree must have one leaf a path; got two at {name}.")
        leaves[name] = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    return leaves


def on_host(leaf: Any) -> np.ndarray:
    """All of the leaf's numbers, from whatever processes hold them; of a typed PRNG key, the numbers it is made of."""
    return _processes.on_host(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def signature(leaf: Any) -> dict[str, Any]:
    """What must be equal for one array to stand in another's place, as JSON."""
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def key_kind(leaf: Any) -> str | None:
    """The generator of a typed PRNG key; None for any other array."""
    return str(jax.random.key_impl(leaf)) if _is_key(leaf) else None


def digest(host: np.ndarray) -> str:
    """Covers dtype and shape too: the same bytes in another shape are another array."""
    header = f"{host.dtype}{host.shape}".encode()
    return blake2b(header + host.tobytes(), digest_size=16).hexdigest()


def digest_of_tree(tree: Tree) -> str:
    """Of all leaves and their paths; of what lies in several processes, all must ask."""
    digests = {name: digest(on_host(leaf)) for name, leaf in by_path(tree).items()}
    return blake2b(repr(sorted(digests.items())).encode(), digest_size=16).hexdigest()


def digest_of_program(function: Callable[..., Any], *shapes: Any) -> str:
    """Of the traced program's text, and of the arrays that it and programs within it have from elsewhere than arguments.

    The text names functions by their address in memory, which says nothing.
    """
    program = jax.make_jaxpr(function)(*shapes)
    found = blake2b(re.sub(r"0x[0-9a-f]+", "", str(program)).encode(), digest_size=16)
    for constant in _constants(program):
        found.update(digest(on_host(jnp.asarray(constant))).encode())
    return found.hexdigest()


def _constants(program: Any) -> Iterator[Any]:
    """The program's own first; then those of what it calls, such as functions under `jax.jit`, which its text lacks."""
    yield from getattr(program, "consts", ())
    for equation in getattr(program, "jaxpr", program).eqns:
        for part in jax.tree.leaves([*equation.params.values()], is_leaf=_is_program):
            if _is_program(part):
                yield from _constants(part)


def _is_program(part: Any) -> bool:
    return isinstance(part, core.ClosedJaxpr | core.Jaxpr)


def differences(signatures: Mapping[str, Mapping[str, Any]], like: Tree) -> list[str]:
    """One line for each leaf that stands in only one of the two, or in both with another shape or dtype."""
    wanted = by_path(like)
    lines = [f"{name}: wanted, and not saved" for name in wanted if name not in signatures]
    lines += [f"{name}: saved, and not wanted" for name in signatures if name not in wanted]
    for name in wanted.keys() & signatures.keys():
        saved, here = _described(signatures[name]), _described(signature(wanted[name]))
        if saved != here:
            lines.append(f"{name}: {saved} saved, {here} wanted")
    return sorted(lines)


def rebuilt(arrays: Mapping[str, np.ndarray], key_kinds: Mapping[str, str | None], like: Tree) -> Any:
    """A tree of `like`'s structure, each array where its counterpart lies."""
    placed = [_placed(arrays[name], key_kinds[name], leaf) for name, leaf in by_path(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), placed)


def check_same(tree: Tree) -> None:
    """Refuses arrays that differ between processes. One that lies on several of them already is the same in all."""
    if jax.process_count() == 1:
        return
    local = {
        name: digest(on_host(leaf))
        for name, leaf in by_path(tree).items()
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
    }
    if different := _processes.differing(local):
        raise ValueError(f"tree must be the same in every process; different are {listed(different)}.")


def listed(names: list[str], separator: str = ", ") -> str:
    """The first few of many."""
    more = len(names) - _LISTED
    return separator.join(names[:_LISTED]) + (f"{separator}and {more} more" if more > 0 else "")


def _placed(host: np.ndarray, key_kind: str | None, like: Any) -> Any:
    # JAX without 64 bits would round the numbers, and cut whole ones off.
    if isinstance(like, np.ndarray | np.generic) or jax.dtypes.canonicalize_dtype(host.dtype) != host.dtype:
        return host
    array = jnp.asarray(host) if key_kind is None else jax.random.wrap_key_data(jnp.asarray(host), impl=key_kind)
    sharding = getattr(like, "sharding", None)
    # An array that nobody placed must stay free: tied to one device it could not meet a batch that lies on several.
    if sharding is None or not getattr(like, "committed", True):
        return array
    return _processes.place(array, sharding)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _described(array: Mapping[str, Any]) -> str:
    return f"{array['dtype']}[{', '.join(map(str, array['shape']))}]"


def within(pattern: str, path: str) -> re.Match[str] | None:
    """Where a regular expression matches whole names of a path: one, or several in a row.

    ``stage1`` stands in ``stage1/kernel`` and in ``batch_stats/stage1/norm/mean``, and not in ``stage10/kernel``;
    ``^stage1`` only where the path begins with it.
    """
    return re.search(rf"(?:^|(?<=/))(?:{pattern})(?=/|$)", path)


def chosen(argument: str, patterns: Sequence[str], paths: Iterable[str]) -> set[str]:
    """The paths in which any of the patterns stands; each pattern must stand in one at least."""
    known = list(paths)
    found: set[str] = set()
    for pattern in patterns:
        check(argument, pattern)
        own = {path for path in known if within(pattern, path)}
        if not own:
            raise ValueError(
                f"{argument} must name parts of the tree; {pattern!r} stands in no path.{_hint(pattern, known)}"
            )
        found |= own
    return found


def check(argument: str, pattern: str) -> None:
    """Refuses what is no regular expression, as early as it is known."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{argument} must be regular expressions; {pattern!r} is none: {error}.") from error


def _hint(pattern: str, paths: Sequence[str]) -> str:
    runs: dict[str, None] = {}
    for path in paths:
        names = path.split("/")
        for start in range(len(names)):
            runs |= dict.fromkeys("/".join(names[start:end]) for end in range(start + 1, len(names) + 1))
    near = get_close_matches(pattern, runs, n=3)
    tops = list(dict.fromkeys(path.split("/")[0] for path in paths))
    if near:
        return f" Did you mean {' or '.join(map(repr, near))}?"
    return f" The tree's own parts are {', '.join(tops) or 'none: it has no leaves'}."

"""A frozen teacher's outputs, computed once and kept: in memory, or in a folder that is proved to be its own.

Where the teacher meets the same inputs in every epoch, a distillation step then costs what the student's step costs.
`cache_views` does the same where the inputs are augmented.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import _checks
from kdjax._apply import run
from kdjax._types import Apply, Tree, Weights
from kdjax.caching import _folder
from kdjax.caching._folder import StaleError
from kdjax.caching._wish import Wish, checked, entries, wanted
from kdjax.connectors import Connector
from kdjax.objectives._places import places_of
from kdjax.objectives._terms import Computed
from kdjax.objectives._weighted_sum import Objective
from kdjax.training.compiler import Options, with_options

__all__ = ["StaleError", "cache_teacher", "choose_place", "features_of", "free_memory"]


def cache_teacher(
    apply: Apply,
    teacher: Weights,
    inputs: Tree,
    *,
    features: Sequence[str] = (),
    logits: bool = True,
    top_k: int | None = None,
    draws: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    batch_size: int = 128,
    path: str | os.PathLike[str] | None = None,
    compiler_options: Options = None,
) -> dict[str, Any]:
    """Runs the teacher over all inputs, once, in inference mode, and keeps what it says of each.

    Args:
      apply: the teacher's `Apply`.
      teacher: its weights.
      inputs: [examples, …], or a pytree of such arrays; preprocessed, as the step would give them to the teacher.
      features: names of the features to keep beside the logits: those that the objective reads, which `features_of` tells.
        What is `Shared`, such as a head, is not kept: the step takes it from the teacher's weights, and needs them.
      logits: whether logits are kept. Of a large vocabulary hidden states are smaller, and `linear_soft_target_kl` takes
        those.
      top_k: keep only the k largest log-probabilities and their classes, for `losses.top_k_kl`; no logits, no features.
      draws: keep this many classes of each example or position, drawn by their probabilities, and their log-probabilities,
        for `losses.sampled_kl`; no logits, no features.
      seed: of the draws. Which they are does not depend on `batch_size`.
      dtype: what the numbers are kept in: ``"float32"``, ``"bfloat16"`` or ``"float16"``. Half the space, three or two
        digits. Whole numbers and bools keep their own.
      batch_size: examples at a time.
      path: a folder to keep them in, memory-mapped; made whole or not at all. One that exists is taken, if it is of this
        teacher and these inputs. None: in memory.
      compiler_options: as in `kdjax.training.jit_step`.

    Returns:
      Entries for the data set's arrays, to be taken batch by batch along with them: ``{"teacher": Outputs}``, which the
      step reads instead of running the teacher, or with `top_k` ``{"top_values": …, "top_indices": …}``, with `draws`
      ``{"sampled_values": …, "sampled_indices": …}``. Arrays [examples, …] on the default device; with a `path`, NumPy's,
      read-only and on disk: `jax.device_put` what fits.

    Raises:
      ValueError: if the teacher has no such feature, or an argument is out of its range.
      StaleError: a ValueError that says what differs, if `path` holds the outputs of something else. The folder stays.
      FloatingPointError: if the teacher gives NaN or an infinity, or a number that `dtype` cannot hold.

    Example:
      >>> from kdjax import Outputs
      >>> def apply(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs @ params, {"doubled": 2 * inputs}), model_state
      >>> kept = cache_teacher(apply, Weights(jnp.eye(3), {}), jnp.ones((7, 3)), features=["doubled"], batch_size=4)
      >>> kept["teacher"].logits.shape, kept["teacher"].features["doubled"][6].tolist()
      ((7, 3), [2.0, 2.0, 2.0])

    Note:
      A cache is right only where training shows the teacher the same inputs. For augmented ones there is
      `cache_views`.

      What makes a folder this teacher's own: a digest of the weights, of the inputs, and (under the same JAX version) of
      the traced program, so that a network with the same weights and another padding is another teacher.
    """
    wish = checked(Wish(tuple(features), logits, top_k, draws, seed, dtype))
    _checks.whole("batch_size", batch_size, 1)
    _checks.instance("teacher", teacher, Weights, "Weights(params, model_state)")
    rows = _rows_of(inputs)
    ask = partial(_said, apply=apply, wish=wish)
    some = jax.tree.map(lambda array: jax.ShapeDtypeStruct((2, *array.shape[1:]), array.dtype), inputs)
    layout = layout_of(jax.eval_shape(ask, teacher, some, jax.ShapeDtypeStruct((2,), jnp.int32)), rows)
    size = min(batch_size, rows)
    compiled = _compiled(*with_options(compiler_options).get("compiler_options", {}).items())

    def write(arrays: Mapping[str, np.ndarray]) -> None:
        # All batches have one size, so that one program computes them: the last begins early and repeats some examples.
        starts = [min(start, rows - size) for start in range(0, rows, size)]

        def said(start: int) -> dict[str, jax.Array]:
            part = jax.tree.map(lambda array: jnp.asarray(array[start : start + size]), inputs)
            found: dict[str, jax.Array] = compiled(
                teacher, part, jnp.arange(start, start + size), apply=apply, wish=wish
            )
            return found

        fill(arrays, ((start, said(start)) for start in starts))

    if path is None:
        return entries(jax.device_put(in_memory(layout, write)))
    digest = _folder.digest_of_rows(inputs)
    identity = _folder.identity(teacher, digest, ask, (teacher, some, jnp.arange(2)), layout)
    return entries(_folder.in_folder(Path(path).absolute(), identity, layout, write))


def features_of(objective: Objective, connectors: Mapping[str, Connector] | None = None) -> list[str]:
    """The teacher's features that training reads: what `cache_teacher` has to keep beside the logits for it.

    They are those of the terms' places, as `on_feature` and `on_outputs` give them, and of the connectors' `reads`. **What a
    plain function reads cannot be seen**: a term of your own that reads features, and a connector of your own that does
    not declare them, need them named beside these. `cross_entropy` reads none.

    Args:
      objective: from `weighted_sum`.
      connectors: those of the step, by name. What stands under a connector's name, ``name`` or ``name_…``, it makes itself.

    Returns:
      Names, sorted, each once.

    Raises:
      ValueError: if a term is made by `computed` and no connectors are given.

    Example:
      >>> from kdjax import connectors, losses, on_feature, weighted_sum
      >>> objective = weighted_sum(
      ...     attention=(1.0, on_feature(losses.attention_transfer, "stage1", teacher="stage2")),
      ...     hint=(1.0, on_feature(losses.hint, "to_teacher")),
      ... )
      >>> features_of(objective, {"to_teacher": connectors.regressor("stage2", "stage3")})
      ['stage2', 'stage3']
    """
    computed = [name for name, term in objective.terms.items() if _is_computed(term)]
    if computed and connectors is None:
        raise ValueError(
            f"connectors must be those of the step, since one of them computes the term {computed[0]!r}, and it alone shows "
            "what it reads of the teacher: features_of(objective, connectors=…); got None."
        )
    made = connectors or {}
    places = {place for term in objective.terms.values() for place in places_of(term) or ()}
    # A feature that a connector makes stands under the connector's name; what it reads is always the teacher's own.
    places = {place for place in places if not any(f"{place}_".startswith(f"teacher.{name}_") for name in made)}
    places |= {place for connector in made.values() for place in connector.reads}
    names = {place.removeprefix("teacher.") for place in places if place.startswith("teacher.")}
    return sorted(names - {"logits"})


def choose_place(size: int, *, memory: int, disk: int) -> str:
    """Where to keep a teacher's outputs: in memory, where they are fastest, as long as they leave room for the training.

    Args:
      size: bytes to be kept.
      memory: bytes free where arrays lie, `free_memory`.
      disk: bytes free where the folder would be, such as ``shutil.disk_usage(folder).free``.

    Returns:
      ``"memory"``, if they take a quarter of what is free there, or less; else ``"disk"``, if they take half of what is
      free there, or less; else ``"off"``: run the teacher in every step.

    Raises:
      ValueError: if a number is negative.

    Example:
      >>> [choose_place(size, memory=4_000, disk=10_000) for size in (1_000, 1_001, 5_000, 5_001)]
      ['memory', 'disk', 'disk', 'off']
    """
    for name, value in (("size", size), ("memory", memory), ("disk", disk)):
        _checks.whole(name, value, 0)
    if 4 * size <= memory:
        return "memory"
    return "disk" if 2 * size <= disk else "off"


def free_memory() -> int:
    """Bytes free where arrays lie by default: on the device, or on CPU what the system has left."""
    device = jax.local_devices()[0].memory_stats()
    if device and "bytes_limit" in device:
        return int(device["bytes_limit"] - device["bytes_in_use"])
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _rows_of(inputs: Tree) -> int:
    """How many examples there are, in every array of a pytree."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(inputs)]
    if len({shape[:1] for shape in shapes}) != 1 or not shapes[0] or shapes[0][0] == 0:
        raise ValueError(f"inputs must hold one example at least, [examples, …]; got shape {shapes!r:.200}.")
    return int(shapes[0][0])


def _is_computed(term: Any) -> bool:
    """Whether a connector computes the term, or one inside of it."""
    leaves = jax.tree.leaves(term, is_leaf=lambda one: isinstance(one, Computed))
    return any(isinstance(leaf, Computed) for leaf in leaves)


def _said(teacher: Weights, inputs: Tree, rows: jax.Array, *, apply: Apply, wish: Wish) -> dict[str, jax.Array]:
    said, _ = run(apply, *teacher, inputs, train=False)
    return wanted(said, wish, rows)


@cache
def _compiled(*options: tuple[str, Any]) -> Any:
    """Once for all teachers of one Apply, such as those of several seeds."""
    return jax.jit(_said, static_argnames=("apply", "wish"), **with_options(dict(options)))


def layout_of(shapes: Mapping[str, jax.ShapeDtypeStruct], rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Of a batch's arrays, those of as many rows."""
    return {name: jax.ShapeDtypeStruct((rows, *one.shape[1:]), one.dtype) for name, one in shapes.items()}


def in_memory(layout: _folder.Layout, write: Any) -> dict[str, np.ndarray]:
    """The arrays, made and written."""
    arrays = {name: np.empty(one.shape, one.dtype) for name, one in layout.items()}
    write(arrays)
    return arrays


def fill(
    arrays: Mapping[str, np.ndarray], parts: Iterable[tuple[int, Mapping[str, jax.Array]]], rows_are: str = "examples"
) -> None:
    """Writes each part from its first row on; refuses what is not finite."""
    for start, values in parts:
        for name, value in values.items():
            rows = np.asarray(value)
            if not np.isfinite(rows.astype(np.float32)).all():
                raise FloatingPointError(
                    f"The teacher's {name} are not all finite as {rows.dtype}, for {rows_are} {start} to "
                    f"{start + len(rows) - 1}."
                )
            arrays[name][start : start + len(rows)] = rows

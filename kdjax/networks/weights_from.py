"""PyTorch's weights in the same architecture in Flax Linen: which layer is which, and in which order its numbers lie."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import _checks, _trees
from kdjax._types import Tree, Weights
from kdjax.networks import _torch_files, _torch_layers
from kdjax.networks._layouts import Layouts
from kdjax.networks._torch_pairs import Pair, pairs
from kdjax.networks.adapters import Modes, from_linen
from kdjax.networks.transfer import Transfer

_COUNTER = "num_batches_tracked"


def weights_from(
    source: str | os.PathLike[str] | Mapping[str, Any],
    module: Any,
    inputs: Tree,
    *,
    names: Mapping[str, str] | None = None,
    skip: Collection[str] = (),
    keep: Collection[str] = (),
    target: Weights | None = None,
    flattened: Mapping[str, str] | None = None,
    logits: Any = None,
    tolerance: float = 1e-5,
    part: str | None = None,
    modes: Modes | None = None,
) -> tuple[Weights, list[Transfer]]:
    """A PyTorch state dict as the weights of a Flax Linen module of the same architecture, and a report of what went where.

    Which layer is which is told by `names`; else by what a layer is and its shape; else, of several alike, by their names
    or their order, which the report says. Everything in the source must go somewhere, and everything in the module must
    be filled, or the error lists both.

    Args:
      source: a ``.safetensors`` file, a ``.pt`` file by ``torch.save`` of a state dict, or arrays by name, as of
        ``model.state_dict()`` on the CPU. PyTorch is not needed, and nothing that stands in a file is run.
      module: a ``flax.linen.Module``, as for `from_linen`.
      inputs: a batch, as arrays or as `jax.ShapeDtypeStruct`. The module is traced with it, for the order of its layers
        and for what is flattened; images [batch, height, width, channels].
      names: ``{name in the source: path in the module}``, such as ``{"layer1.0": "stage1/block0"}``, of layers or of parts
        with several: their layers are then paired among themselves.
      skip: regular expressions of whole names in the source that go nowhere: ``"head"`` is ``head.weight`` too.
      keep: regular expressions of the parts of `target` that keep their numbers, as in `kdjax.training.freeze`.
      target: the module's weights as initialised; needed with `keep`.
      flattened: ``{path of a layer: "first" or "last"}`` where it cannot be told: whether PyTorch holds channels first the
        map that this layer reads flattened.
      logits: what PyTorch returned for these `inputs` after ``model.eval()``, [batch, …]. Give it whenever you can: a
        state dict does not hold strides, padding, epsilon, the number of heads or the activations.
      tolerance: by how much of the largest |logit| the logits may differ.
      part: which entry of a checkpoint of several is meant, such as ``"ema"``.
      modes: as in `from_linen`.

    Returns:
      The weights, in the module's dtypes; and one `Transfer` for each leaf and for each unused entry, to be printed by
      `transfer_lines`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged or holds more than a state dict, a number is NaN or infinite, layers are left
        over or could go several ways, the order of a flattened map cannot be told, or the logits differ.

    Example:
      A map of 2 × 2 positions and 3 channels, flattened: PyTorch's rows are the channels' maps, one after the other.

      >>> from flax import linen as nn
      >>> from kdjax.networks import transfer_lines
      >>> module = nn.Sequential([nn.Conv(3, (1, 1)), lambda x: x.reshape(len(x), -1), nn.Dense(2)])
      >>> state = {"0.weight": np.ones((3, 1, 1, 1)), "0.bias": np.zeros(3)}
      >>> state |= {"2.weight": np.arange(24.0).reshape(2, 12), "2.bias": np.zeros(2)}
      >>> weights, report = weights_from(state, module, jax.ShapeDtypeStruct((1, 2, 2, 1), jnp.float32))
      >>> weights.params["layers_2"]["kernel"][:, 0].astype(int).tolist()
      [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
      >>> print(transfer_lines(report)[3])
      copied  params/layers_2/kernel  from 2.weight, transposed, rows reordered from channels first to last: 2 × 2 × 3,
      cast from float64 to float32

    Note:
      Supported are Linear, Conv1d to Conv3d, ConvTranspose (Flax without groups), BatchNorm, LayerNorm over one axis,
      GroupNorm, InstanceNorm, RMSNorm, Embedding, MultiheadAttention and bare parameters. Projections of queries, keys and
      values that one Linear holds are split only where it is MultiheadAttention's. PyTorch keeps the
      running variance of BatchNorm with the divisor n − 1, Flax with n, the count of numbers of a channel in a batch.
      It is copied as it is, so that inference agrees; while training on, each batch adds (n − 1)/n of what PyTorch would
      add. PyTorch's ``momentum`` m is 1 − m in Flax, whose default is 0.99 where PyTorch's amounts to 0.9.

    Reference:
      The layout of safetensors: https://huggingface.co/docs/safetensors/index#format
      What torch.save writes: https://docs.pytorch.org/docs/stable/notes/serialization.html
    """
    _checks.positive("tolerance", tolerance)
    skip, keep = (one if isinstance(one, str) else tuple(one or ()) for one in (skip, keep))
    _check_arguments(source, inputs, {"names": names, "flattened": flattened}, {"skip": skip, "keep": keep})
    init, apply = from_linen(module, modes=modes)
    shaped = jax.tree.map(lambda one: jax.ShapeDtypeStruct(np.shape(one), jnp.result_type(one)), inputs)
    structure, modules = _torch_layers.called(module, lambda: init(jax.random.key(0), _zeros(shaped)))
    leaves = _trees.by_path(structure)
    own = _own(keep, target, structure)
    entries, report = _entries(source, part, skip)
    chosen, found = _pairs(entries, leaves, modules, own, names)
    layouts = Layouts(apply, structure, shaped, chosen[1], flattened, own)
    values: dict[str, Any] = dict(own)
    for pair in found:
        turned = getattr(modules.get(pair.target.path), "transpose_kernel", False)
        _refuse_turned(pair)
        for path, (array, said) in _torch_layers.converted(pair.source, pair.target, leaves, turned).items():
            array, rows = layouts.arranged(pair.target, path, array)
            values[path], cast = _cast(array, leaves[path].dtype, path)
            why = ", ".join(filter(None, (said, rows, cast, pair.how, pair.target.remark)))
            report.append(Transfer(path, _origin(pair, path), "copied", why))
    layouts.refuse_idle(own)
    report += [Transfer(path, None, "left", "named by keep") for path in own]
    place = {path: number for number, path in enumerate(leaves)}
    report.sort(key=lambda entry: place.get(entry.name or "", len(place)))
    weights = jax.tree.unflatten(jax.tree.structure(structure), [values[path] for path in leaves])
    if logits is not None:
        _check_logits(apply, weights, inputs, logits, tolerance, found)
    return weights, report


def _check_arguments(source: Any, inputs: Tree, mappings: Mapping[str, Any], several: Mapping[str, Any]) -> None:
    if not isinstance(source, str | os.PathLike | Mapping):
        raise ValueError(f"source must be a file's path, or arrays by name; got {source!r:.99}.")
    leaves = jax.tree.leaves(inputs)
    arrays = [leaf for leaf in leaves if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
    if not arrays or any(isinstance(leaf, str) for leaf in leaves):
        raise ValueError(f"inputs must be a batch of arrays, or of jax.ShapeDtypeStruct; got {inputs!r:.99}.")
    for name, given in mappings.items():
        words = isinstance(given, Mapping) and all(isinstance(one, str) for pair in given.items() for one in pair)
        if given is not None and not words:
            raise ValueError(f"{name} must be a mapping of words to words, or None; got {given!r:.99}.")
    for name, given in several.items():
        if isinstance(given, str) or not all(isinstance(one, str) for one in given):
            raise ValueError(f"{name} must be several regular expressions, such as ('head',); got {given!r:.99}.")


def _zeros(shaped: Tree) -> Tree:
    return jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shaped)


def _own(keep: Sequence[str], target: Weights | None, structure: Weights) -> dict[str, Any]:
    """The leaves that keep their numbers."""
    if bool(keep) != (target is not None):
        raise ValueError(
            f"target must be the module's weights where keep names some, and None otherwise; keep is {keep!r}."
        )
    if target is None:
        return {}
    leaves, wanted = _trees.by_path(target), _trees.by_path(structure)
    signatures = {path: _trees.signature(leaf) for path, leaf in leaves.items()}
    if differing := _trees.differences(signatures, structure):
        raise ValueError(f"target must be the weights of module; {_trees.listed(differing, '; ')}.")
    chosen = _trees.chosen("keep", keep, wanted)
    return {path: leaf for path, leaf in leaves.items() if path in chosen}


def _entries(
    source: str | os.PathLike[str] | Mapping[str, Any], part: str | None, skip: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[Transfer]]:
    """What has to go somewhere, and the report of what does not."""
    if isinstance(source, Mapping):
        if part is not None:
            raise ValueError(f"part must be None where source is a mapping: give that part itself; got {part!r}.")
        if not all(isinstance(name, str) for name in source):
            raise ValueError(f"source must map names to arrays; got the keys {list(source)[:5]}.")
        arrays = {name: np.asarray(array) for name, array in source.items()}
    else:
        arrays = _torch_files.read(Path(source), part)
    skipped: set[str] = set()
    for pattern in skip:
        _trees.check("skip", pattern)
        here = {name for name in arrays if re.search(rf"(?:^|(?<=\.))(?:{pattern})(?=\.|$)", name)}
        if not here:
            raise ValueError(
                f"skip must name entries of source; {pattern!r} stands in none of {_trees.listed(list(arrays))}."
            )
        skipped |= here
    report = [Transfer(None, name, "unused", "named by skip") for name in arrays if name in skipped]
    entries = {}
    for name, array in arrays.items():
        if name in skipped:
            continue
        if name.rpartition(".")[2] == _COUNTER:
            report.append(Transfer(None, name, "unused", "counts batches, which Flax does not"))
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"source must hold floating-point numbers; {name} is {array.dtype}. Name it in skip.")
        elif not np.isfinite(array.astype(np.float64)).all():
            raise ValueError(
                f"source must hold finite numbers; {name} has NaN or infinity. Name it in skip, or mend it."
            )
        else:
            entries[name] = array
    return entries, report


def _pairs(
    entries: Mapping[str, np.ndarray],
    leaves: Mapping[str, Any],
    modules: Mapping[str, Any],
    own: Mapping[str, Any],
    names: Mapping[str, str] | None,
) -> tuple[tuple[list[_torch_layers.Target], list[str]], list[Pair]]:
    from flax import linen as nn

    wanted = {path: leaf for path, leaf in leaves.items() if path not in own}
    targets, last = _torch_layers.targets(wanted, modules, nn)
    plain = {name: _torch_layers.without_collection(path) for name, path in (names or {}).items()}
    bare = {target.path for target in targets if target.key[0] == "parameter"}
    sources = _torch_layers.sources(entries, [name for name, path in plain.items() if name in entries and path in bare])
    # Sorted by name, as .safetensors files are (by type first): the order of registration is lost.
    kinds = {array.dtype for array in entries.values()}
    runs = [[name for name in entries if entries[name].dtype == kind] for kind in kinds]
    return (targets, last), pairs(sources, targets, plain, ordered=any(run != sorted(run) for run in runs))


def _refuse_turned(pair: Pair) -> None:
    """A square weight in a bare parameter: PyTorch's Linear would have to be transposed, another's not."""
    entry = pair.source.entries.get("weight")
    if pair.target.key[0] == "parameter" and entry is not None and entry.name.rpartition(".")[2] == "weight":
        shape = [size for size in entry.array.shape if size > 1]
        if len(set(shape)) < len(shape):
            raise ValueError(
                f"source must not leave open whether {entry.name}, of shape {tuple(entry.array.shape)}, is transposed for "
                f"{pair.target.path}: bring it as the module has it, under a name that does not end in weight."
            )


def _cast(array: np.ndarray, dtype: Any, path: str) -> tuple[jax.Array, str]:
    with np.errstate(over="ignore", under="ignore"):
        value = np.array(array).astype(dtype)
    if not np.isfinite(value.astype(np.float64)).all():
        raise ValueError(f"source must hold numbers that {dtype} holds; those for {path} are too large for it.")
    return jnp.asarray(value), "" if array.dtype == dtype else f"cast from {array.dtype} to {dtype}"


def _origin(pair: Pair, path: str) -> str:
    member = next(member for member, leaf in pair.target.leaves.items() if leaf == path)
    return pair.source.entries[member].name


def _check_logits(
    apply: Any, weights: Weights, inputs: Tree, logits: Any, tolerance: float, found: Sequence[Pair]
) -> None:
    if any(isinstance(one, jax.ShapeDtypeStruct) for one in jax.tree.leaves(inputs)):
        raise ValueError("inputs must be arrays where logits are given; got jax.ShapeDtypeStruct.")
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(
            jax.jit(lambda *two: apply(*two[0], two[1], train=False)[0].logits)(weights, inputs), np.float64
        )
    theirs = np.asarray(logits, np.float64)
    _checks.same_shape("logits", theirs, "the module's logits", ours)
    largest = float(np.abs(theirs).max())
    away = np.abs(ours - theirs)
    if not away.max() <= tolerance * largest:
        place = tuple(int(one) for one in np.unravel_index(np.argmax(away), away.shape))
        guessed = [f"{pair.source.name} to {pair.target.path}" for pair in found if pair.how.startswith("by ")]
        raise ValueError(
            f"logits must be those of the module to {tolerance:g} of the largest, {largest:.6g}; at {place} they are "
            f"{theirs[place]:.6g} and {ours[place]:.6g}. Compare strides, padding, epsilon, heads and activations (the "
            f"default nn.gelu is an approximation); of layers alike were paired {_trees.listed(guessed) or 'none'}."
        )

"""What two networks' layers make of the same examples: how alike they are, and where on a picture they are active."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax._apply import run
from kdjax._types import Apply, Shared, Weights
from kdjax.metrics import cka
from kdjax.networks import layer_names

EXAMPLES = 256  # of the alignment
LEAST = 16  # fewer say nothing of an alignment
LAYERS = 6  # of a network, and its logits
MAPS = 3  # layers whose attention is drawn
DRAWN = 4  # pictures of which it is
WIDEST = 56  # positions of a map, at most


def forward(apply: Apply) -> Any:
    """``(weights, inputs) -> (logits, features)``, compiled; features that belong to no example are left out."""

    def both(weights: Weights, inputs: Any) -> tuple[Any, dict[str, Any]]:
        outputs = run(apply, *weights, inputs, train=False)[0]
        examples = jax.tree.leaves(inputs)[0].shape[0]
        features = {
            name: one.astype(jnp.float32)
            for name, one in outputs.features.items()
            if not isinstance(one, Shared)
            and jnp.issubdtype(one.dtype, jnp.floating)
            and one.ndim > 1
            and one.shape[0] == examples
        }
        return outputs.logits.astype(jnp.float32), features

    return jax.jit(both)


def compare(
    networks: Mapping[str, Any], inputs: Any, counted: Sequence[int] | np.ndarray, shown: Sequence[int], *, most: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Alignments of the teacher's layers with each student's, attention maps, and logits of the examples that are shown.

    Args:
      networks: by name, with ``apply`` and ``weights``.
      inputs: all examples that are read.
      counted: which of them count; the first of these are aligned.
      shown: which of them are shown.
      most: how many examples' outputs may be held at once.

    Returns:
      ``"examples"``, ``"cka"`` by student, names of layers of the maps by network; and arrays ``"logits_NETWORK"``,
      ``"attention_NETWORK_LAYER"`` [pictures, height, width], from 0 to 1.
    """
    count = min(EXAMPLES, most, len(counted))
    indices = np.concatenate([counted[:count], shown]).astype(int)
    found: dict[str, dict[str, np.ndarray]] = {}
    arrays: dict[str, np.ndarray] = {}
    maps: dict[str, list[str]] = {}
    for name, network in networks.items():
        these = jax.tree.map(lambda one: one[indices], inputs)
        logits, by_name = forward(network.apply)(network.weights, these)
        # What comes out of jax.jit is sorted by name.
        order = layer_names(network.apply, network.weights, these)
        features = {layer: by_name[layer] for layer in order if layer in by_name}
        arrays[f"logits_{name}"] = np.asarray(logits[count:])
        two = {layer: one for layer, one in features.items() if one.ndim == 4 and min(one.shape[1:3]) > 1}
        maps[name] = [*two][-MAPS:]
        for layer in maps[name]:
            arrays[f"attention_{name}_{layer}"] = _attention(np.asarray(two[layer][count : count + DRAWN]))
        chosen = [*features]
        if len(chosen) > LAYERS:
            chosen = [chosen[place] for place in np.linspace(0, len(chosen) - 1, LAYERS).round().astype(int)]
        found[name] = {layer: features[layer][:count] for layer in chosen} | {"logits": logits[:count]}
    about: dict[str, Any] = {"examples": count, "maps": maps, "cka": {}}
    if count >= LEAST and any(len(layers) > 1 for layers in found.values()):
        held = {name: {layer: _held(one) for layer, one in layers.items()} for name, layers in found.items()}
        for student in held.keys() - {"teacher"}:
            about["cka"][student] = {
                "student": [*held[student]],
                "teacher": [*held["teacher"]],
                "values": [
                    [_aligned(one, other) for other in held["teacher"].values()] for one in held[student].values()
                ],
            }
    return about, arrays


def _attention(features: np.ndarray) -> np.ndarray:
    """Mean square over the channels, as of attention transfer, each map from 0 to its largest."""
    maps = np.mean(np.square(features, dtype=np.float64), axis=-1)
    step = -(-max(maps.shape[1:]) // WIDEST)
    maps = maps[:, ::step, ::step]
    largest = maps.max(axis=(1, 2), keepdims=True)
    return (maps / np.where(largest > 0, largest, 1.0)).astype(np.float16)


def _held(features: Any) -> np.ndarray:
    """As many dims as examples, with the same products of examples and hence the same alignment: one program for all."""
    flat = np.asarray(features, np.float64).reshape(len(features), -1)
    flat = flat - flat.mean(axis=0)
    if flat.shape[1] > len(flat) and np.isfinite(flat).all():
        values, vectors = np.linalg.eigh(flat @ flat.T)
        flat = vectors * np.sqrt(np.maximum(values, 0.0))
    same = np.zeros((len(flat), len(flat)), np.float32)
    same[:, : flat.shape[1]] = flat[:, : len(flat)]
    return same


def _aligned(one: np.ndarray, other: np.ndarray) -> float | None:
    value = cka(one, other, debiased=True)
    return value if np.isfinite(value) else None

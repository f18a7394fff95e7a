"""The losses whose memory is measured, and RKD's angles as they are usually written."""

from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
from _losses import COSTS, EMBEDDINGS, STUDENT, TEACHER, Work, embeddings, normal
from jaxtyping import Array, Float

from kdjax import losses


def naive_angle(student: Float[Array, "batch dim"], teacher: Float[Array, "batch dim"]) -> Float[Array, " batch"]:
    """`rkd_angle` by its definition, through the [batch, batch, dim] differences of all pairs: the yardstick."""

    def cosines(points: Array) -> Array:
        edges = points[None] - points[:, None]
        lengths = jnp.sqrt(jnp.maximum(jnp.sum(edges * edges, axis=2, keepdims=True), 1e-24))
        return jnp.einsum("ijd,ikd->ijk", edges / lengths, edges / lengths)

    size = jnp.abs(cosines(student) - cosines(teacher))
    return jnp.mean(jnp.where(size < 1, 0.5 * size * size, size - 0.5), axis=(1, 2))


@dataclass(frozen=True)
class MemoryCase:
    """One thing whose memory is measured: work at one batch, and in MB what it may take over its inputs, if a target."""

    work: Work
    batch: int
    limit: float | None = None


def _angle(block: int | None) -> Work:
    return Work(partial(losses.rkd_angle, block=block), embeddings, EMBEDDINGS)


_NAIVE_ANGLE = Work(naive_angle, embeddings, EMBEDDINGS)
_WIDE_MAPS = Work(
    losses.neuron_selectivity,
    lambda batch: (normal(STUDENT, batch, 8, 8, 128), normal(TEACHER, batch, 8, 8, 256)),
    "[B, 8, 8, 128 | 256]",
)
PRODUCTS = 4 * 64 * 128 * 256 * 64 / 1e6
"""MB of neuron_selectivity's [B, C, C', HW] in the case below, which must never be."""

MEMORY = {
    **{f"rkd_angle, block={block}": MemoryCase(_angle(block), 1024, 350.0) for block in (1, 2, 4, 8)},
    "rkd_angle, block=16": MemoryCase(_angle(16), 1024),
    "rkd_angle": MemoryCase(_angle(None), 1024),
    "rkd_angle, naive": MemoryCase(_NAIVE_ANGLE, 1024),
    "rkd_angle, block=8, 256": MemoryCase(_angle(8), 256),
    "rkd_angle, 256": MemoryCase(_angle(None), 256),
    "rkd_angle, naive, 256": MemoryCase(_NAIVE_ANGLE, 256),
    "neuron_selectivity": MemoryCase(_WIDE_MAPS, 64, PRODUCTS / 4),
    "crd": MemoryCase(COSTS["crd"], 64, 300.0),
}
QUICK_MEMORY = ("rkd_angle, block=8", "neuron_selectivity", "crd")

OURS, NAIVE = "rkd_angle", "rkd_angle, naive"
AT_64 = {OURS: _angle(None), "rkd_angle, block=8": _angle(8), NAIVE: _NAIVE_ANGLE}
"""Side by side at batch 64: the loss must not cost more time than its definition."""

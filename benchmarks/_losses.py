"""The losses at work: each with arrays of the sizes that training meets."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kdjax import losses

STUDENT, TEACHER, OTHERS = 0, 1, 2  # keys of the random arrays
BANK, NEGATIVES = 50_000, 16_384
TRIPLE = (32, 128, 512)


@dataclass(frozen=True)
class Work:
    """A loss and what it is given.

    Attributes:
      loss: of the arrays, to one number per example; `crd` also gives its next bank.
      arrays: makes them for a batch.
      sizes: of the arrays, in words.
      batches: those worth a measurement.
      learnt: which arrays the gradient is taken for.
    """

    loss: Callable[..., Any]
    arrays: Callable[[int], tuple]
    sizes: str
    batches: tuple[int, ...] = TRIPLE
    learnt: tuple[int, ...] = (0,)

    def compiled(self, batch: int) -> jax.stages.Compiled:
        """The mean's value and gradient, with what else the loss gives. No array is made for it."""

        def mean(*arrays: Any) -> tuple[Array, Any]:
            result = self.loss(*arrays)
            values, other = result if isinstance(result, tuple) else (result, None)
            return jnp.mean(values), other

        step = jax.value_and_grad(mean, argnums=self.learnt, has_aux=True)
        return jax.jit(step).lower(*jax.eval_shape(partial(self.arrays, batch))).compile()


def normal(key: int, *shape: int) -> Array:
    return jax.random.normal(jax.random.key(key), shape)


def _labels(batch: int) -> Array:
    return jax.random.randint(jax.random.key(OTHERS), (batch,), 0, 100)


def _logits(batch: int) -> tuple:
    return normal(STUDENT, batch, 100), normal(TEACHER, batch, 100)


def _heads(batch: int) -> tuple:
    """Of all batches the words are more than a chunk holds."""
    heads = 0.1 * normal(OTHERS, 64, 32_768), 0.1 * normal(OTHERS, 128, 32_768)
    return normal(STUDENT, batch, 64), heads[0], normal(TEACHER, batch, 128), heads[1]


def _head_and_labels(batch: int) -> tuple:
    return *_heads(batch)[:2], _labels(batch)


def embeddings(batch: int) -> tuple:
    return normal(STUDENT, batch, 128), normal(TEACHER, batch, 128)


def _maps(batch: int) -> tuple:
    return normal(STUDENT, batch, 8, 8, 64), normal(TEACHER, batch, 8, 8, 128)


def _same_maps(batch: int) -> tuple:
    return normal(STUDENT, batch, 8, 8, 128), normal(TEACHER, batch, 8, 8, 128)


def _maps_and_margin(batch: int) -> tuple:
    return *_same_maps(batch), -jnp.abs(normal(OTHERS, 128))


def _maps_of_classes(batch: int) -> tuple:
    return normal(STUDENT, batch, 8, 8, 100), normal(TEACHER, batch, 8, 8, 100)


def _two_maps(batch: int) -> tuple:
    (student, teacher), (on_top, teacher_on_top) = _same_maps(batch), _maps(batch)
    return student[..., :64], on_top, teacher[..., :64], teacher_on_top[..., :64]


def _sequences(batch: int) -> tuple:
    return normal(STUDENT, batch, 16, 128), normal(TEACHER, batch, 16, 128)


def _banked(batch: int) -> tuple:
    indices = jnp.arange(batch)
    negatives = losses.draw_negatives(jax.random.key(OTHERS), indices, NEGATIVES, BANK)
    return *embeddings(batch), indices, losses.init_bank(jax.random.key(OTHERS), BANK, 128), negatives


def _with_labels(arrays: Callable[[int], tuple]) -> Callable[[int], tuple]:
    return lambda batch: (*arrays(batch), _labels(batch))


def _with(arrays: Callable[[int], tuple], *shape: int) -> Callable[[int], tuple]:
    return lambda batch: (*arrays(batch), normal(OTHERS, *shape))


def _stored(batch: int) -> tuple:
    student, teacher = _logits(batch)
    return student, *jax.lax.top_k(jax.nn.log_softmax(teacher), 10)


def _drawn(batch: int) -> tuple:
    student, teacher = _logits(batch)
    drawn = jax.random.categorical(jax.random.key(OTHERS), teacher[:, None], shape=(batch, 10))
    return student, jnp.take_along_axis(jax.nn.log_softmax(teacher), drawn, axis=1), drawn


def _unlike_logits(batch: int) -> tuple:
    return normal(STUDENT, batch, 100), normal(TEACHER, batch, 200)


def _thrice_labelled(batch: int) -> tuple:
    return *_logits(batch), normal(OTHERS, batch, 100), _labels(batch)


def _own_labelled(batch: int) -> tuple:
    return _logits(batch)[0], _labels(batch)


VOCABULARY = "[B, 64 | 128] × [64 | 128, 32768]"
LOGITS, MAPS, SAME_MAPS, EMBEDDINGS = "[B, 100]", "[B, 8, 8, 64 | 128]", "[B, 8, 8, 128]", "[B, 128]"

COSTS = {
    "soft_target_kl": Work(losses.soft_target_kl, _logits, LOGITS),
    "logit_mse": Work(losses.logit_mse, _logits, LOGITS),
    "reverse_kl": Work(losses.reverse_kl, _logits, LOGITS),
    "jensen_shannon": Work(losses.jensen_shannon, _logits, LOGITS),
    "soft_target_bce": Work(losses.soft_target_bce, _logits, LOGITS),
    "total_variation": Work(losses.total_variation, _logits, LOGITS),
    "skewed_kl": Work(losses.skewed_kl, _logits, LOGITS),
    "reverse_skewed_kl": Work(losses.reverse_skewed_kl, _logits, LOGITS),
    "sorted_probabilities": Work(losses.sorted_probabilities, _unlike_logits, "[B, 100 | 200]"),
    **{
        f"linear_{name}": Work(getattr(losses, f"linear_{name}"), _heads, VOCABULARY, learnt=(0, 1))
        for name in ("soft_target_kl", "reverse_kl", "jensen_shannon")
    },
    "linear_cross_entropy": Work(losses.linear_cross_entropy, _head_and_labels, VOCABULARY, learnt=(0, 1)),
    "target_class_kd": Work(losses.target_class_kd, _with_labels(_logits), LOGITS),
    "non_target_class_kd": Work(losses.non_target_class_kd, _with_labels(_logits), LOGITS),
    "decoupled_kd": Work(losses.decoupled_kd, _with_labels(_logits), LOGITS),
    "normalized_kd": Work(losses.normalized_kd, _with_labels(_logits), LOGITS),
    "weighted_soft_labels": Work(losses.weighted_soft_labels, _with_labels(_logits), LOGITS),
    "virtual_teacher": Work(losses.virtual_teacher, _own_labelled, LOGITS),
    "uskd_target": Work(losses.uskd_target, _with_labels(_logits), LOGITS),
    "uskd_non_target": Work(losses.uskd_non_target, _thrice_labelled, LOGITS),
    "multi_level_instance": Work(losses.multi_level_instance, _logits, LOGITS),
    "multi_level_batch": Work(losses.multi_level_batch, _logits, LOGITS),
    "multi_level_class": Work(losses.multi_level_class, _logits, LOGITS),
    "dist": Work(losses.dist, _logits, LOGITS),
    "standardized_kd": Work(losses.standardized_kd, _logits, LOGITS),
    "top_k_kl": Work(losses.top_k_kl, _stored, f"{LOGITS}, 10 kept"),
    "sampled_kl": Work(losses.sampled_kl, _drawn, f"{LOGITS}, 10 drawn"),
    "hint": Work(losses.hint, _same_maps, SAME_MAPS),
    "cosine": Work(losses.cosine, _same_maps, SAME_MAPS),
    "attention_transfer": Work(losses.attention_transfer, _maps, MAPS),
    "factor_transfer": Work(losses.factor_transfer, _maps, MAPS),
    "neuron_selectivity": Work(losses.neuron_selectivity, _maps, MAPS),
    "activation_boundary": Work(losses.activation_boundary, _same_maps, SAME_MAPS),
    "overhaul": Work(lambda s, t, m: losses.overhaul(s, t, margin=m), _maps_and_margin, SAME_MAPS),
    "variational_information": Work(
        lambda s, t, v: losses.variational_information(s, t, raw_variance=v),
        _with(_same_maps, 128),
        SAME_MAPS,
        learnt=(0, 2),
    ),
    "hierarchical_context": Work(losses.hierarchical_context, _same_maps, SAME_MAPS),
    "channel_wise": Work(losses.channel_wise, _same_maps, SAME_MAPS),
    "inter_channel_correlation": Work(losses.inter_channel_correlation, _same_maps, SAME_MAPS),
    "class_attention": Work(losses.class_attention, _maps_of_classes, "[B, 8, 8, 100]"),
    "fsp": Work(losses.fsp, _two_maps, "4 × [B, 8, 8, 64]", learnt=(0, 1)),
    "sequence_angles": Work(losses.sequence_angles, _sequences, "[B, 16, 128]"),
    "rkd_distance": Work(losses.rkd_distance, embeddings, EMBEDDINGS),
    "rkd_angle": Work(losses.rkd_angle, embeddings, EMBEDDINGS, (32, 128)),
    **{
        f"rkd_angle, block={block}": Work(partial(losses.rkd_angle, block=block), embeddings, EMBEDDINGS)
        for block in (1, 8)
    },
    "pkt": Work(losses.pkt, embeddings, EMBEDDINGS),
    "similarity_preserving": Work(losses.similarity_preserving, embeddings, EMBEDDINGS),
    "correlation_congruence": Work(losses.correlation_congruence, embeddings, EMBEDDINGS),
    "kernel_congruence": Work(losses.kernel_congruence, embeddings, EMBEDDINGS),
    "kernel_alignment": Work(losses.kernel_alignment, embeddings, EMBEDDINGS),
    "similarity_graph": Work(losses.similarity_graph, _with_labels(embeddings), EMBEDDINGS),
    "info_nce": Work(losses.info_nce, embeddings, EMBEDDINGS),
    "similarity_distribution": Work(
        lambda s, t, q: losses.similarity_distribution(s, t, q, temperatures=(0.2, 0.01)),
        _with(embeddings, 4096, 128),
        f"{EMBEDDINGS}, queue of 4,096",
    ),
    "crd": Work(losses.crd, _banked, f"{EMBEDDINGS}, {NEGATIVES:,} negatives, bank of {BANK:,}", (32, 128)),
}
"""What every loss costs where it is typically used."""

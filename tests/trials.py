"""How each loss is lifted to a term, and the small networks and the digits on which all of them are tried."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from kdjax import (
    Outputs,
    Shared,
    Weights,
    computed,
    connectors,
    cross_entropy,
    init_state,
    losses,
    make_train_step,
    on_feature,
    on_logits,
    on_outputs,
    weighted_sum,
)
from kdjax.batches import epoch_indices, take
from kdjax.data import load, on_device, unit_range
from kdjax.networks import from_linen

BATCH, HELD_OUT = 64, 128


class Network(nn.Module):
    """Two convolutions of 2 × 2 patches and two dense layers; its features are taken before their ReLUs.

    ``"hidden"`` and ``"head"`` are what the logits are the product of: the head has its bias as one row more.
    """

    @nn.compact
    def __call__(self, images):
        bottom = nn.Dense(6)(patches(images))
        top = nn.Dense(8)(patches(nn.relu(bottom)))
        embedding = nn.Dense(12)(nn.relu(top).reshape(len(images), -1))
        rows = bottom.reshape(len(images), 4, -1)
        hidden = nn.relu(embedding)
        dense = nn.Dense(10)
        logits, weights = dense(hidden), dense.variables["params"]
        last = {
            "hidden": jnp.pad(hidden, ((0, 0), (0, 1)), constant_values=1),
            "head": Shared(jnp.concatenate([weights["kernel"], weights["bias"][None]])),
        }
        return Outputs(logits, {"bottom": bottom, "top": top, "embedding": embedding, "rows": rows, **last})


def patches(maps):
    """[batch, height, width, channels] to [batch, height/2, width/2, 4 channels]."""
    batch, height, width, channels = maps.shape
    blocks = maps.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    return blocks.reshape(batch, height // 2, width // 2, 4 * channels)


class Trial(NamedTuple):
    """How a loss is lifted, and how much of its value may be left.

    Attributes:
      term: the loss, lifted.
      left: the most that may be left, as a share of the value before. Half, where three seeds left 40 % or less.
      why: where more may be left.
      steps: of training.
      beside: its connectors by name, which stay as they were initialised but for what they remember.
    """

    term: Any
    left: float = 0.5
    why: str = ""
    steps: int = 100
    beside: Mapping[str, connectors.Connector] = {}


TRIALS = {
    **{
        loss.__name__: Trial(on_logits(loss))
        for loss in (
            losses.soft_target_kl,
            losses.soft_target_bce,
            losses.logit_mse,
            losses.reverse_kl,
            losses.jensen_shannon,
            losses.target_class_kd,
            losses.non_target_class_kd,
            losses.decoupled_kd,
            losses.normalized_kd,
            losses.dist,
            losses.standardized_kd,
            losses.total_variation,
            losses.skewed_kl,
            losses.reverse_skewed_kl,
            losses.sorted_probabilities,
            losses.weighted_soft_labels,
            losses.multi_level_instance,
        )
    },
    **{
        loss.__name__: Trial(
            on_outputs(loss, "student.hidden", "student.head", "teacher.hidden", "teacher.head", temperature=2.0)
        )
        for loss in (losses.linear_soft_target_kl, losses.linear_reverse_kl, losses.linear_jensen_shannon)
    },
    "linear_cross_entropy": Trial(on_outputs(losses.linear_cross_entropy, "student.hidden", "student.head")),
    # Even predictions, with which a network begins, are a saddle of both: what they see is of second order there.
    "multi_level_batch": Trial(on_logits(losses.multi_level_batch), steps=300),
    "multi_level_class": Trial(on_logits(losses.multi_level_class, temperature=1.0), steps=300),
    "virtual_teacher": Trial(on_outputs(losses.virtual_teacher, "student.logits", temperature=2.0)),
    "uskd_target": Trial(on_outputs(losses.uskd_target, "student.logits", "detached.logits")),
    "uskd_non_target": Trial(
        on_outputs(losses.uskd_non_target, "student.logits", "detached.logits", "detached.weak"),
        left=0.9,
        why="Zipf's law has an entropy of its own",
        beside={"weak": connectors.auxiliary("bottom")},
    ),
    "sampled_kl": Trial(
        on_outputs(losses.sampled_kl, "student.logits", "batch.sampled_values", "batch.sampled_indices")
    ),
    **{
        loss.__name__: Trial(on_feature(loss, feature))
        for loss, feature in (
            (losses.hint, "top"),
            (losses.cosine, "top"),
            (losses.attention_transfer, "top"),
            (losses.factor_transfer, "top"),
            (losses.neuron_selectivity, "top"),
            (losses.activation_boundary, "top"),
            (losses.channel_wise, "top"),
            (losses.inter_channel_correlation, "top"),
            (losses.class_attention, "top"),
            (losses.hierarchical_context, "bottom"),
            (losses.sequence_angles, "rows"),
            (losses.rkd_distance, "embedding"),
            (losses.rkd_angle, "embedding"),
            (losses.similarity_preserving, "embedding"),
            (losses.correlation_congruence, "embedding"),
            (losses.kernel_congruence, "embedding"),
            (losses.kernel_alignment, "embedding"),
            (losses.pkt, "embedding"),
            (losses.info_nce, "embedding"),
        )
    },
    "top_k_kl": Trial(on_outputs(losses.top_k_kl, "student.logits", "batch.top_values", "batch.top_indices")),
    "overhaul": Trial(on_outputs(losses.overhaul, "student.top", "teacher.top", margin="batch.margin")),
    "fsp": Trial(on_outputs(losses.fsp, "student.bottom", "student.top", "teacher.bottom", "teacher.top")),
    "variational_information": Trial(
        on_outputs(
            losses.variational_information, "student.vid", "teacher.vid", raw_variance="student.vid_raw_variance"
        ),
        left=0.8,
        why="three random layers stand between the student's feature and the teacher's, and the variance stays",
        beside={"vid": connectors.variational("top", start_variance=0.5)},
    ),
    "similarity_graph": Trial(
        on_feature(losses.similarity_graph, "embedding"),
        left=0.85,
        why="partners of one class compete with each other: with k of them, at least log k stays",
    ),
    "similarity_distribution": Trial(
        on_outputs(
            losses.similarity_distribution,
            "student.embedding",
            "teacher.embedding",
            "teacher.seed_queue",
            temperatures=(0.2, 0.1),
        ),
        left=0.9,
        why="a cross-entropy: the teacher's entropy stays",
        beside={"seed": connectors.queue("embedding", size=128)},
    ),
    "crd": Trial(
        computed("crd"),
        left=0.7,
        why="in one half of it the teacher's embeddings look for the student's in the bank, which is one for both",
        beside={"crd": connectors.contrast("embedding", size=1257, dim=12, negatives=64)},
    ),
}


INIT, APPLY = from_linen(Network())


@functools.cache
def digits() -> tuple[dict, dict]:
    """All training digits, and the held-out ones."""
    train, test = (on_device(load("digits", split), unit_range) for split in ("train", "test"))
    return train, take(test, np.arange(HELD_OUT))


@functools.cache
def teacher() -> Weights:
    """Trained for 600 steps on the labels; once a session."""
    train, _ = digits()
    optimizer = optax.adam(1e-2)
    step = make_train_step(APPLY, None, optimizer)
    objective = weighted_sum(labels=(1.0, cross_entropy))
    state = init_state(INIT(jax.random.key(0), train["inputs"][:1]), optimizer, jax.random.key(0))
    state, metrics = jax.jit(
        lambda state, batches: jax.lax.scan(
            lambda s, chosen: step(s, None, objective, take(train, chosen)), state, batches
        )
    )(state, batches_of(600))
    assert metrics["accuracy"][-10:].mean() > 0.97
    return Weights(state.params, state.model_state)


# A loss is what takes the student, or its hidden states, first; what else is exported serves one.
LOSSES = [
    name
    for name, exported in ((name, getattr(losses, name)) for name in losses.__all__)
    if inspect.isfunction(exported)
    and next(iter(inspect.signature(exported).parameters)).startswith(("student", "hidden"))
]


def batches_of(steps: int) -> jax.Array:
    an_epoch = len(digits()[0]["labels"]) // BATCH
    epochs = [epoch_indices(len(digits()[0]["labels"]), BATCH, seed=0, epoch=e) for e in range(-(-steps // an_epoch))]
    return jnp.concatenate(epochs)[:steps]


@functools.cache
def arrays() -> tuple[dict, dict]:
    """What a batch may hold, of the training digits and of the held-out ones, and what belongs to no example."""

    def told(part):
        outputs = APPLY(*teacher(), part["inputs"], train=False)[0]
        top_values, top_indices = jax.lax.top_k(jax.nn.log_softmax(outputs.logits), 4)
        stored = {"top_values": top_values, "top_indices": top_indices, "indices": jnp.arange(len(part["labels"]))}
        log_p = jax.nn.log_softmax(outputs.logits)
        drawn = jax.random.categorical(jax.random.key(3), log_p[:, None], shape=(len(log_p), 8))
        stored |= {"sampled_values": jnp.take_along_axis(log_p, drawn, axis=-1), "sampled_indices": drawn}
        return part | stored, outputs.features["top"]

    teacher()  # before anything is traced
    (train, top), (test, _) = map(jax.jit(told), digits())
    margin = losses.negative_margin(*(statistic(top, axis=(0, 1, 2)) for statistic in (jnp.std, jnp.mean)))
    return train, test | {"margin": margin}

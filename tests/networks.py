"""The student and the teacher that tests of the layers above the losses share: small, with BatchNorm and dropout."""

import jax
import jax.numpy as jnp
import optax

from experiments._networks import make_model
from kdjax import cross_entropy, init_state, on_feature, on_logits, weighted_sum
from kdjax.losses import rkd_distance, soft_target_kl
from kdjax.networks import from_linen

BATCH = 16


def student(axis_name=None, classes=10):
    """Returns (init, apply)."""
    return from_linen(
        make_model(
            "digits_student",
            classes=classes,
            widths=(4, 4),
            hidden=8,
            batch_norm=True,
            dropout=0.5,
            axis_name=axis_name,
        )
    )


def teacher():
    return from_linen(make_model("digits_teacher", widths=(6, 8), hidden=12))


def batch(size=BATCH, seed=0):
    key = jax.random.key(seed)
    inputs = jax.random.uniform(key, (size, 8, 8, 1))
    return {"inputs": inputs, "labels": jax.random.randint(key, (size,), 0, 10)}


def objective(**weights):
    """Labels, soft targets and a relational loss, which sees the whole batch or is wrong."""
    return weighted_sum(
        labels=(weights.get("labels", 0.5), cross_entropy),
        soft=(weights.get("soft", 0.5), on_logits(soft_target_kl, temperature=weights.get("temperature", 4.0))),
        relations=(weights.get("relations", 3.0), on_feature(rkd_distance, "embedding")),
    )


def optimizer():
    # Not Adam: it scales gradients that are rounding noise up to full steps, and no two programs round alike.
    return optax.sgd(0.1, momentum=0.9)


def fresh_state(seed=0, transform=None):
    weights = jax.jit(student()[0])(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))
    return init_state(weights, transform or optimizer(), jax.random.key(seed + 100))


def teacher_weights(seed=7):
    return jax.jit(teacher()[0])(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))

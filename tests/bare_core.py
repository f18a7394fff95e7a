"""Run by CI where only jax, optax, NumPy and jaxtyping are installed: one step of distillation without any framework."""

import importlib.util

import jax
import jax.numpy as jnp
import optax

import kdjax
from kdjax import Outputs, Weights, cross_entropy, on_feature, on_logits, weighted_sum
from kdjax.command import main
from kdjax.losses import rkd_angle, soft_target_kl

for absent in ("flax", "orbax", "tensorflow_datasets", "chex", "matplotlib", "rich"):
    assert importlib.util.find_spec(absent) is None, f"{absent} is installed, so this proves nothing"


def apply(params, model_state, inputs, *, train, rng=None):
    embedding = jnp.tanh(inputs @ params["first"])
    return Outputs(embedding @ params["second"], {"embedding": embedding}), model_state


def weights(seed, width):
    first, second = jax.random.split(jax.random.key(seed))
    shapes = {"first": jax.random.normal(first, (5, width)), "second": jax.random.normal(second, (width, 3))}
    return Weights(shapes, {})


optimizer = optax.adam(0.01)
objective = weighted_sum(
    labels=(0.1, cross_entropy),
    soft=(0.9, on_logits(soft_target_kl, temperature=4.0)),
    angles=(1.0, on_feature(rkd_angle, "embedding")),
)
step = kdjax.training.jit_step(kdjax.make_train_step(apply, apply, optimizer))
state = kdjax.init_state(weights(0, 4), optimizer, jax.random.key(0))
batch = {"inputs": jax.random.normal(jax.random.key(2), (8, 5)), "labels": jnp.arange(8) % 3}
losses = []
for _ in range(50):
    state, metrics = step(state, weights(1, 16), objective, batch)
    losses.append(float(metrics["loss"]))
assert losses[-1] < 0.8 * losses[0], losses
print(
    f"kdjax distils with its core alone: loss {losses[0]:.3f} to {losses[-1]:.3f} in 50 steps on jax {jax.__version__}"
)
assert main(["doctor"]) == 0  # which says what is not there
assert main(["report", "run"]) == 1  # in a sentence

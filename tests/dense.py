"""A small dense student and teacher with normalisation and noise, for the laws of the step: they compile in a moment.

They are plain functions. Noise is hashed from the step's key and the example's number: threefry alone, unrolled once a draw,
would be most of what there is to compile.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from kdjax import Outputs, Weights, connectors, cross_entropy, init_state, on_feature, on_logits, weighted_sum
from kdjax.losses import soft_target_kl

BATCH, DIM, CLASSES = 16, 6, 5


def network(axis_name=None, noise=0.0):
    """An Apply: dense, batch normalisation over the whole batch, noise on the embedding, dense."""

    def apply(params, model_state, inputs, *, train, rng=None):
        hidden = inputs @ params["body"]
        if train:
            mean, square = jnp.mean(hidden, axis=0), jnp.mean(hidden * hidden, axis=0)
            if axis_name is not None:
                mean, square = lax.pmean((mean, square), axis_name)
            seen = {"mean": mean, "variance": square - mean * mean}
            model_state = {name: 0.9 * old + 0.1 * seen[name] for name, old in model_state.items()}
        else:
            seen = model_state
        hidden = (hidden - seen["mean"][None]) * lax.rsqrt(seen["variance"] + 1e-5)[None] * params["scale"][None]
        embedding = jax.nn.relu(hidden)
        if train and noise:
            embedding = embedding + noise * hashed(rng, embedding.shape, axis_name)
        return Outputs(embedding @ params["head"], {"embedding": embedding}), model_state

    return apply


def hashed(rng, shape, axis_name):
    """Numbers in [0, 1) for each example of the whole batch, by its place there and the key."""
    first = 0 if axis_name is None else lax.axis_index(axis_name) * shape[0]
    rows, columns = (jnp.arange(size, dtype=jnp.uint32) for size in shape)
    place = (jnp.asarray(first, jnp.uint32) + rows)[:, None] * jnp.uint32(31) + columns[None]
    mixed = (jax.random.key_data(rng)[-1] ^ (place * jnp.uint32(2654435761))) * jnp.uint32(2246822519)
    return (mixed >> 8).astype(jnp.float32) / 2.0**24


def weights(seed, width):
    draw = np.random.default_rng(seed).normal
    params = {"body": draw(size=(DIM, width)), "scale": np.ones(width), "head": draw(size=(width, CLASSES))}
    state = {"mean": np.zeros(width), "variance": np.ones(width)}
    return Weights(*jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), (params, state)))


def student(axis_name=None):
    return network(axis_name, noise=0.5)


teacher = network()


def batch(size=BATCH, seed=0):
    rng = np.random.default_rng(seed)
    inputs, labels = rng.normal(size=(size, DIM)).astype(np.float32), rng.integers(0, CLASSES, size).astype(np.int32)
    return {"inputs": jnp.asarray(inputs), "labels": jnp.asarray(labels), "indices": jnp.arange(size)}


def total(scores):
    """Each example's own share of the loss, where all terms give each example one number and all count."""
    return sum(scores.weights[name] * value for name, value in scores.terms.items())


def spread(student, teacher):
    """A relation: how far each example is from the mean of the batch, in both networks."""
    far_student, far_teacher = (jnp.mean((z - jnp.mean(z, axis=0)[None]) ** 2, axis=1) for z in (student, teacher))
    return (far_student - far_teacher) ** 2


def objective(labels=0.5, soft=0.5, temperature=4.0, relations=0.3, **more):
    """Labels, soft targets and a relational loss, which sees the whole batch or is wrong."""
    return weighted_sum(
        labels=(labels, cross_entropy),
        soft=(soft, on_logits(soft_target_kl, temperature=temperature)),
        relations=(relations, on_feature(spread, "embedding")),
        **more,
    )


def optimizer():
    # Not Adam: it scales gradients that are rounding noise up to full steps, and no two programs round alike.
    return optax.sgd(0.1, momentum=0.9)


def fresh_state(seed=0, transform=None):
    return init_state(weights(seed, 4), transform or optimizer(), jax.random.key(seed + 100))


def teacher_weights(seed=7):
    return weights(seed, 8)


def beside(seed, axis_name=None, its=None):
    """The student with a connector that learns to give another's embedding: the mapping, and a state."""
    mapping = {"hint": connectors.regressor("embedding")}
    other, of_other = (teacher, teacher_weights()) if its is None else its
    made = connectors.init_beside(
        mapping, jax.random.key(seed), network(), weights(seed, 4), other, of_other, jnp.zeros((2, DIM))
    )
    return mapping, init_state(made, optimizer(), jax.random.key(seed + 100))

"""Two dense layers under the names of a convolutional network's layers: scripts that train them are done in a moment."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax import Outputs
from kdjax.networks import from_linen


class Dense(nn.Module):
    width: int = 6
    classes: int = 10
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, inputs, train=False):
        flat = inputs.reshape(len(inputs), -1)
        embedding = nn.relu(nn.Dense(self.width, dtype=self.dtype)(flat))
        logits = nn.Dense(self.classes, dtype=self.dtype)(embedding).astype(jnp.float32)
        return Outputs(logits, {"embedding": embedding, "stage2": embedding[:, None, None]})


def network(width=6, classes=10):
    """A pair (init, apply)."""
    init, apply = from_linen(Dense(width, classes))
    return jax.jit(init), apply


def make_model(name, *, classes=10, dtype=jnp.float32, **others):
    """`experiments._networks.make_model`, whatever the name."""
    return Dense(8 if "teacher" in name else 6, classes, dtype)

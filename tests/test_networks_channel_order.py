"""Flattened maps: each order that a module may flatten in is found, against PyTorch's own flattening of the same map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax import _trees
from kdjax.networks import from_linen, weights_from
from kdjax.networks._channel_order import orders

NOISE = np.random.default_rng(0)
IMAGES = NOISE.normal(size=(2, 4, 6, 3)).astype(np.float32)
ROWS = np.arange(4 * 6 * 5).reshape(5, 4, 6).transpose(1, 2, 0).ravel()  # Flax's place: PyTorch's row


class Network(nn.Module):
    """A convolution of 5 channels, something, and a layer that reads all of it."""

    between: object
    last: type = nn.Dense

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(5, (3, 3), name="conv")(x)
        x = self.between(x)
        return nn.Dense(2, name="head")(x)


def met_by(module, x, leaf, last=()):
    init, apply = from_linen(module)
    weights = jax.eval_shape(init, jax.random.key(0), x)
    program = jax.make_jaxpr(lambda weights, x: apply(*weights, x, train=False)[0].logits)(weights, x)
    met, _ = orders(program, list(_trees.by_path(weights)), [(x.shape, x.dtype == np.float32)], last)
    return met.get(f"params/{leaf}", [])


def tokens(x):
    return x.reshape(2, -1, 5)


def flat(x):
    return x.reshape(x.shape[0], -1)


def by_hand(x):
    """The same, such that the axes cannot be followed."""
    return jax.lax.map(lambda one: jnp.sin(one).ravel(), x)


def flat_after_sine(x):
    return flat(jnp.sin(x))


def gate(x):
    return x * nn.sigmoid(nn.Dense(5, name="gate")(x.mean((1, 2))))[:, None, None]


REORDERED = {
    "at once": flat,
    "after activations": lambda x: flat(nn.gelu(nn.relu(x) * 2 + 1)),
    "after dropout": lambda x: nn.Dropout(0.5, deterministic=True)(flat(x)),
    "after batch normalisation": lambda x: flat(nn.BatchNorm(True, name="norm")(x)),
    "after group normalisation": lambda x: flat(nn.GroupNorm(1, name="norm")(x)),
    "after a residual branch": lambda x: flat(x + nn.Conv(5, (3, 3), name="more")(x)),
    "after gates of the channels": lambda x: flat(gate(x)),
    "after adding up along the channels": lambda x: flat(jnp.cumsum(x, -1)),
    "in two steps, positions last": lambda x: x.reshape(2, 4, -1).reshape(2, -1),
    "in a form for each platform": lambda x: jax.lax.platform_dependent(x, cpu=by_hand, default=flat_after_sine),
    "under remat and jit": lambda x: jax.jit(jax.checkpoint(lambda x: flat(jnp.sin(x))))(x),
    "after resizing there and back": lambda x: flat(
        jax.image.resize(jax.image.resize(x, (2, 8, 6, 5), "linear"), x.shape, "linear")
    ),
}


@pytest.mark.parametrize("how", REORDERED)
def test_a_flattened_map_has_its_rows_reordered(how):
    (met,) = met_by(Network(REORDERED[how]), IMAGES, "head/kernel")
    assert not met.unsure
    np.testing.assert_array_equal(met.rows(), ROWS)


AS_THEY_ARE = {
    "a mean over positions": lambda x: x.mean((1, 2)),
    "the largest of each channel": lambda x: x.max((1, 2)),
    "channels first before": lambda x: flat(x.transpose(0, 3, 1, 2)),
    "one position": lambda x: flat(nn.avg_pool(x, (4, 6))),
    "no flattening": lambda x: x,
    "a chain of dense layers": lambda x: nn.Dense(4, name="more")(x.mean((1, 2))),
    "tokens after attention": lambda x: flat(nn.MultiHeadDotProductAttention(1, name="more")(tokens(x))),
    "tokens and their attention": lambda x: flat(
        tokens(x) + nn.MultiHeadDotProductAttention(1, name="more")(tokens(x))
    ),
}


@pytest.mark.parametrize("how", AS_THEY_ARE)
def test_other_rows_stay_as_they_are(how):
    (met,) = met_by(Network(AS_THEY_ARE[how]), IMAGES, "head/kernel")
    assert not met.unsure
    assert met.rows() is None


UNSURE = {
    "flipped": lambda x: flat(x)[:, ::-1],
    "added up": lambda x: jnp.cumsum(flat(x), -1),
    "sorted": lambda x: jnp.sort(flat(x), -1),
    "cut": lambda x: flat(x)[:, 3:],
    "joined with something": lambda x: jnp.concatenate([flat(x), x.mean((1, 2))], -1),
    "in patches": lambda x: flat(x.reshape(2, 2, 2, 3, 2, 5).transpose(0, 1, 3, 2, 4, 5)),
    "in a loop": lambda x: jax.lax.fori_loop(0, 2, lambda _, x: x * 2, flat(x)),
    "after a dense layer of a map": lambda x: flat(nn.Dense(5, name="more")(x)),
    "after layer normalisation of a map": lambda x: flat(nn.LayerNorm(name="norm")(x)),
    "of a row of positions": lambda x: flat(x.reshape(2, -1, 5)),
}


@pytest.mark.parametrize("how", UNSURE)
def test_what_cannot_be_told_is_unsure_and_asked_for(how):
    module = Network(UNSURE[how])
    (met,) = met_by(module, IMAGES, "head/kernel", last=["params/norm/scale", "params/norm/bias"])
    assert met.unsure
    init, _ = from_linen(module)
    params = jax.eval_shape(init, jax.random.key(0), IMAGES).params
    state = {
        f"{name}.{'bias' if leaf == 'bias' else 'weight'}": np.ones(
            one.shape[::-1][: 2 if one.ndim == 2 else 1] if one.ndim < 3 else (5, 3, 3, 3)
        )
        for name, leaves in params.items()
        for leaf, one in leaves.items()
    }
    with pytest.raises(
        ValueError, match=r'flattened must tell of head .*channels first: \{\'head\': "first"\} or "last"'
    ):
        weights_from(state, module, IMAGES)
    weights_from(state, module, IMAGES, flattened={"head": "last"})
    with pytest.raises(ValueError, match=r"flattened\['head'\] must be one of first, last; got 'second'"):
        weights_from(state, module, IMAGES, flattened={"head": "second"})
    with pytest.raises(ValueError, match=r"flattened must be one of conv, .*Did you mean 'head'"):
        weights_from(state, module, IMAGES, flattened={"heads": "last"})


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm(True, name="norm"), nn.LayerNorm(epsilon=1e-5, name="norm")], ids=["batch", "layer"]
)
def test_a_normalisation_of_the_flattened_map_is_reordered_with_it(norm):
    """Channels first and last, the same numbers: what PyTorch computes, and what the converted module does."""

    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(2, name="head")(norm.clone(parent=self)(flat(nn.Conv(5, (1, 1), name="conv")(x))))

    draw = lambda *shape: NOISE.uniform(0.5, 2, shape).astype(np.float32)  # noqa: E731
    state = {"conv.weight": draw(5, 3, 1, 1), "conv.bias": draw(5), "norm.weight": draw(120), "norm.bias": draw(120)}
    x = flat(np.einsum("bhwi,oi->bohw", IMAGES, state["conv.weight"][..., 0, 0]) + state["conv.bias"][:, None, None])
    if isinstance(norm, nn.BatchNorm):
        state |= {"norm.running_mean": draw(120), "norm.running_var": draw(120)}
        x = (x - state["norm.running_mean"]) / np.sqrt(state["norm.running_var"] + 1e-5)
    else:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    state |= {"head.weight": draw(2, 120), "head.bias": draw(2)}
    logits = (x * state["norm.weight"] + state["norm.bias"]) @ state["head.weight"].T + state["head.bias"]
    weights_from(state, Normalised(), IMAGES, logits=logits)
    wrong = logits @ np.array([[0, 1], [1, 0]], np.float32)
    with pytest.raises(ValueError, match="logits must be those of the module"):
        weights_from(state, Normalised(), IMAGES, logits=wrong)


@pytest.mark.parametrize("kind", ["map from a row", "positions among channels"])
def test_a_convolution_of_what_was_one_axis_is_refused(kind):
    class Decoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            if kind == "map from a row":
                x = nn.Dense(2 * 2 * 3, name="first")(x).reshape(-1, 2, 2, 3)
            else:
                x = x.reshape(-1, 2, 2, 1, 3).transpose(0, 1, 3, 2, 4).reshape(-1, 2, 1, 6)
            return nn.Conv(4, (1, 1), name="conv")(x)

    rows = kind == "map from a row"
    state = {"conv.weight": np.ones((4, 3 if rows else 6, 1, 1)), "conv.bias": np.ones(4)}
    state |= {"first.weight": np.ones((12, 7)), "first.bias": np.ones(12)} if rows else {}
    x = jnp.ones((2, 7)) if rows else jnp.ones((2, 2, 2, 3))
    with pytest.raises(ValueError, match="module must give conv a map whose channels and positions are kept apart"):
        weights_from(state, Decoder(), x)
    weights_from(state, Decoder(), x, flattened={"conv": "last"})


def test_what_a_loop_or_training_alone_reads_is_asked_for():
    class Looped(nn.Module):
        @nn.compact
        def __call__(self, x):
            step = nn.scan(
                lambda layer, x, _: (layer(x), None),
                variable_broadcast="params",
                split_rngs={"params": False},
                length=2,
            )
            return step(nn.LayerNorm(1e-5, name="norm"), flat(x), None)[0]

    state = {"norm.weight": np.ones(72), "norm.bias": np.ones(72)}
    with pytest.raises(ValueError, match="flattened must tell of norm"):
        weights_from(state, Looped(), IMAGES)

    class Auxiliary(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            more = nn.Dense(2, name="more")(flat(x)) if train or self.is_initializing() else 0.0
            return x.mean((1, 2)) + jnp.mean(more)

    state = {"more.weight": np.ones((2, 72)), "more.bias": np.ones(2)}
    with pytest.raises(ValueError, match="flattened must tell of more"):
        weights_from(state, Auxiliary(), IMAGES)

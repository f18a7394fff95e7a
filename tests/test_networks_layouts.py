"""Rows that are rearranged, and what is asked where the module does not tell how."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax.networks import from_linen, weights_from

IMAGES = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)


def flat(x):
    return x.reshape(x.shape[0], -1)


def converted(between, shapes, **more):
    """The logits of a network by `weights_from`, and the state that they are of."""
    draw = np.random.default_rng(1).normal
    state = {name: draw(size=shape) for name, shape in shapes.items()}
    weights, _ = weights_from(state, between, IMAGES, **more)
    return np.asarray(from_linen(between)[1](*weights, IMAGES, train=False)[0].logits), state


class AlongWidth(nn.Module):
    """PyTorch's Linear over the width of [batch, channels, height, width], and a flatten."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(5, (1, 1), name="conv")(x).swapaxes(2, 3)
        return nn.Dense(2, name="head")(flat(nn.Dense(7, name="wide")(x).swapaxes(2, 3)))


def test_a_layer_along_an_axis_of_space_leaves_it_one_of_space():
    shapes = {"conv.weight": (5, 3, 1, 1), "conv.bias": (5,), "wide.weight": (7, 6), "wide.bias": (7,)}
    shapes |= {"head.weight": (2, 5 * 4 * 7), "head.bias": (2,)}
    with pytest.raises(ValueError, match=r"flattened must tell of head .* It reads 4 × 7 × 5"):
        converted(AlongWidth(), shapes)
    found, state = converted(AlongWidth(), shapes, flattened={"head": "first"})
    maps = np.einsum("bhwi,oi->bohw", IMAGES, state["conv.weight"][:, :, 0, 0]) + state["conv.bias"][:, None, None]
    wide = maps @ state["wide.weight"].T + state["wide.bias"]
    np.testing.assert_allclose(
        found, wide.reshape(2, -1) @ state["head.weight"].T + state["head.bias"], rtol=1e-4, atol=1e-4
    )


class Refused(nn.Module):
    way: str

    @nn.compact
    def __call__(self, x):
        if self.way == "stacked":
            conv = nn.Conv(5, (1, 1), name="conv")
            return nn.Dense(2, name="head")(flat(jnp.stack([conv(x), conv(-x)], axis=1)))
        if self.way == "a map of one size":
            x = nn.Conv(4, (1, 1), name="conv")(x[:, :, :4])
            return nn.Dense(2, name="head")((x + self.param("own", nn.initializers.zeros, (1, 4, 4, 4))).mean((1, 2)))
        x = nn.Dense(4 * 6 * 3, name="first")(flat(x).mean(axis=1, keepdims=True)).reshape(2, 4, 6, 3)
        x = nn.BatchNorm(True, name="norm")(x) if self.way == "a row that becomes a map, normalised" else x
        return nn.Dense(2, name="head")(x.mean((1, 2)))


CONV = {"conv.weight": (5, 3, 1, 1), "conv.bias": (5,), "head.bias": (2,)}
ROW = {"first.weight": (72, 1), "first.bias": (72,), "head.weight": (2, 3), "head.bias": (2,)}
NORM = {f"norm.{name}": (3,) for name in ("weight", "bias", "running_mean", "running_var")}


@pytest.mark.parametrize(
    ("way", "shapes", "layers"),
    [
        ("stacked", CONV | {"head.weight": (2, 2 * 4 * 6 * 5)}, ["head"]),
        (
            "a map of one size",
            {
                "conv.weight": (4, 3, 1, 1),
                "conv.bias": (4,),
                "own": (1, 4, 4, 4),
                "head.weight": (2, 4),
                "head.bias": (2,),
            },
            ["own"],
        ),
        ("a row that becomes a map", ROW, ["head"]),
        ("a row that becomes a map, normalised", ROW | NORM, ["norm", "head"]),
    ],
)
def test_what_sizes_cannot_tell_is_refused_until_you_have_reordered_it(way, shapes, layers):
    for layer in layers:
        others = dict.fromkeys({*layers} - {layer}, "last")
        with pytest.raises(ValueError, match=f"flattened must (be .last.|tell) (for|of) {layer}"):
            converted(Refused(way), shapes, flattened=others)
        if layer == "head":
            with pytest.raises(ValueError, match='flattened must be "last" for head'):
                converted(Refused(way), shapes, flattened=others | {"head": "first"})
    assert converted(Refused(way), shapes, flattened=dict.fromkeys(layers, "last"))[0].shape == (2, 2)


class Grouped(nn.Module):
    groups: int
    of_a_map: bool = True
    affine: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (1, 1), name="conv")(x)
        both = {"use_scale": self.affine, "use_bias": self.affine}
        x = nn.GroupNorm(self.groups, epsilon=1e-5, name="norm", **both)(x if self.of_a_map else flat(x))
        return nn.Dense(2, name="head")(flat(x))


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_a_map_that_is_normalised_in_groups_is_flattened_as_torch_has_it(groups):
    shapes = {"conv.weight": (6, 3, 1, 1), "conv.bias": (6,), "norm.weight": (6,), "norm.bias": (6,)}
    found, state = converted(Grouped(groups), shapes | {"head.weight": (2, 6 * 4 * 6), "head.bias": (2,)})
    maps = np.einsum("bhwi,oi->bohw", IMAGES, state["conv.weight"][:, :, 0, 0]) + state["conv.bias"][:, None, None]
    parts = maps.reshape(2, groups, -1)
    parts = (parts - parts.mean(-1, keepdims=True)) / np.sqrt(parts.var(-1, keepdims=True) + 1e-5)
    maps = parts.reshape(maps.shape) * state["norm.weight"][:, None, None] + state["norm.bias"][:, None, None]
    wanted = maps.reshape(2, -1) @ state["head.weight"].T + state["head.bias"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_normalisation_in_half_precision_is_followed_in_half_precision():
    class Added(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(6, (1, 1), dtype=jnp.bfloat16, name="conv")(x)
            return nn.Dense(2, name="head")(
                jax.lax.add(nn.GroupNorm(2, dtype=jnp.bfloat16, name="norm")(x), x).mean((1, 2))
            )

    shapes = {"conv.weight": (6, 3, 1, 1), "conv.bias": (6,), "norm.weight": (6,), "norm.bias": (6,)}
    found, _ = converted(Added(), shapes | {"head.weight": (2, 6), "head.bias": (2,)})
    assert np.isfinite(found).all()


def test_a_flattened_map_is_not_normalised_in_groups():
    """Channels first, other numbers make a group: no order of scale and bias can mend that."""
    count = 6 * 4 * 6
    shapes = {"conv.weight": (6, 3, 1, 1), "conv.bias": (6,), "norm.weight": (count,), "norm.bias": (count,)}
    shapes |= {"head.weight": (2, count), "head.bias": (2,)}
    for flattened in ({}, {"norm": "first", "head": "first"}):
        with pytest.raises(ValueError, match="module must not normalise a flattened map in 2 groups, as norm does"):
            converted(Grouped(2, of_a_map=False), shapes, flattened=flattened)
    # In one group the order is only an order, and a map that PyTorch too holds channels last has Flax's groups.
    converted(Grouped(1, of_a_map=False), shapes)
    converted(Grouped(2, of_a_map=False), shapes, flattened={"norm": "last", "head": "last"})


def test_groups_of_a_flattened_map_are_asked_for_where_no_leaf_of_the_normalisation_is_paired():
    count = 6 * 4 * 6
    shapes = {"conv.weight": (6, 3, 1, 1), "conv.bias": (6,), "head.weight": (2, count), "head.bias": (2,)}
    with pytest.raises(ValueError, match="flattened must tell of head whether PyTorch holds what it reads"):
        converted(Grouped(2, of_a_map=False, affine=False), shapes)
    module = Grouped(2, of_a_map=False)
    own = from_linen(module)[0](jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match="flattened must tell of head whether PyTorch holds what it reads"):
        converted(module, shapes, keep=["norm"], target=own)

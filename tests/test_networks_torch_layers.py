"""Each kind of layer, converted, computes what PyTorch's layer does: against sums written out, in PyTorch's layout."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax.networks import from_linen, weights_from

NOISE = np.random.default_rng(0)


def noise(*shape):
    return NOISE.uniform(0.2, 1.0, shape).astype(np.float32) * NOISE.choice([-1, 1], shape).astype(np.float32)


class Alone(nn.Module):
    layer: nn.Module
    at: str = ""

    def __call__(self, x, train=False):
        return self.layer(x)


def outputs_of(layer, state, x):
    module = Alone(layer)
    weights, report = weights_from(state, module, x)
    return from_linen(module)[1](*weights, x, train=False)[0].logits, report


def first(x):
    return jnp.moveaxis(x, -1, 1)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_convolution_is_torchs(axes, groups):
    """The oracle has PyTorch's own layout, channels first, by JAX's dimension numbers."""
    kernel, stride, letters = (3, 2, 4)[:axes], (2, 1, 3)[:axes], "DHW"[:axes]
    weight, bias, x = noise(6, 4 // groups, *kernel), noise(6), noise(2, *(7, 8, 9)[:axes], 4)
    pads = [(1, 1)] * axes
    numbers = (f"NC{letters}", f"OI{letters}", f"NC{letters}")
    wanted = (
        jax.lax.conv_general_dilated(
            first(x), weight, stride, pads, feature_group_count=groups, dimension_numbers=numbers
        )
        + bias.reshape(6, *[1] * axes)[None]
    )
    layer = nn.Conv(6, kernel, stride, pads, feature_group_count=groups)
    ours, report = outputs_of(layer, {"c.weight": weight, "c.bias": bias}, x)
    np.testing.assert_allclose(first(ours), wanted, rtol=1e-5, atol=1e-5)
    assert [entry.why for entry in report] == ["", "output and input channels last"]


def transposed(x, weight, stride, padding):
    """torch.nn.ConvTranspose2d without bias, by its definition: every input adds its multiple of the kernel."""
    (batch, _, *sizes), (_, outputs, *window) = x.shape, weight.shape
    whole = [(size - 1) * stride + length for size, length in zip(sizes, window, strict=True)]
    found = np.zeros((batch, outputs, *whole), np.float32)
    for i, j in itertools.product(*map(range, sizes)):
        rows, columns = (slice(at * stride, at * stride + n) for at, n in zip((i, j), window, strict=True))
        found[:, :, rows, columns] += np.einsum("bi,iohw->bohw", x[:, :, i, j], weight)
    return found[:, :, padding : whole[0] - padding, padding : whole[1] - padding]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("size", "stride", "torch_padding", "padding"), [(3, 2, 0, "VALID"), (4, 2, 1, "SAME"), (2, 2, 0, "SAME")]
)
def test_a_transposed_convolution_is_torchs(size, stride, torch_padding, padding, turned):
    weight, bias, x = noise(3, 5, size, size), noise(5), noise(2, 4, 3, 3)
    wanted = transposed(np.asarray(first(x)), weight, stride, torch_padding) + bias[:, None, None]
    layer = nn.ConvTranspose(5, (size, size), (stride, stride), padding, transpose_kernel=turned)
    ours, _ = outputs_of(layer, {"c.weight": weight, "c.bias": bias}, x)
    np.testing.assert_allclose(first(ours), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm_infers_with_torchs_variance_as_it_is(affine):
    x = noise(4, 3, 3, 6)
    scale, bias, mean, var = noise(6), noise(6), noise(6), np.abs(noise(6))
    state = {"n.running_mean": mean, "n.running_var": var, "n.num_batches_tracked": np.int64(3)}
    state |= {"n.weight": scale, "n.bias": bias} if affine else {}
    wanted = (x - mean) / np.sqrt(var + 1e-5)
    wanted = wanted * scale + bias if affine else wanted
    ours, _ = outputs_of(nn.BatchNorm(True, use_scale=affine, use_bias=affine), state, x)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)


def test_flax_moves_its_average_by_the_variance_with_divisor_n():
    """What the docstring says of training on: each batch adds (n − 1)/n of what PyTorch would add."""
    x = noise(4, 3)
    layer = nn.BatchNorm(False, momentum=0.9)
    variables = {
        "params": {"scale": np.ones(3), "bias": np.zeros(3)},
        "batch_stats": {"mean": np.zeros(3), "var": np.zeros(3)},
    }
    _, changed = layer.apply(variables, x, mutable=["batch_stats"])
    torchs = 0.1 * x.var(axis=0, ddof=1)
    np.testing.assert_allclose(changed["batch_stats"]["var"], torchs * 3 / 4, rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "axes", "said"),
    [
        (nn.LayerNorm(), (-1,), "epsilon is 1e-06, PyTorch's default 1e-05"),
        (nn.LayerNorm(epsilon=1e-5), (-1,), ""),
        (nn.GroupNorm(num_groups=1, epsilon=1e-5), (1, 2, 3), "in 1 groups, which the source does not tell"),
        (nn.InstanceNorm(epsilon=1e-5), (1, 2), ""),
    ],
)
def test_normalisations_are_torchs_and_what_a_state_dict_does_not_hold_is_said(layer, axes, said):
    x, scale, bias = noise(2, 4, 3, 6), noise(6), noise(6)
    wanted = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + layer.epsilon) * scale + bias
    ours, report = outputs_of(layer, {"n.weight": scale, "n.bias": bias}, x)
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)
    assert {entry.why for entry in report} == {said}


def test_rms_norm_and_embedding_are_torchs():
    x, scale = noise(2, 4, 6), noise(6)
    ours, report = outputs_of(nn.RMSNorm(), {"n.weight": scale}, x)
    np.testing.assert_allclose(ours, x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale, rtol=1e-5)
    assert report[0].why == "epsilon is 1e-06, in PyTorch by default the dtype's own"
    table, tokens = noise(7, 4), np.array([[0, 6, 3]])
    ours, _ = outputs_of(nn.Embed(7, 4), {"e.weight": table}, tokens)
    np.testing.assert_array_equal(ours, table[tokens])


def attention(x, query, key, value, out, heads):
    """torch.nn.MultiheadAttention of one input: pairs (weight, bias), the heads' numbers in a row."""
    rows = [(x @ weight.T + bias).reshape(*x.shape[:2], heads, -1) for weight, bias in (query, key, value)]
    scores = np.einsum("bqhd,bkhd->bhqk", rows[0], rows[1]) / np.sqrt(rows[0].shape[-1])
    shares = np.asarray(jax.nn.softmax(scores, -1))
    mixed = np.einsum("bhqk,bkhd->bqhd", shares, rows[2]).reshape(*x.shape[:2], -1)
    return mixed @ out[0].T + out[1]


@pytest.mark.parametrize("stacked", [False, True])
def test_attention_is_torchs_whatever_order_the_projections_are_registered_in(stacked):
    x = noise(2, 5, 6)
    parts = {name: (noise(6, 6), noise(6)) for name in ("q", "k", "v", "out")}
    if stacked:
        state = {
            f"a.in_proj_{name}": np.concatenate([parts[one][at] for one in "qkv"])
            for at, name in enumerate(("weight", "bias"))
        }
        state |= {"a.out_proj.weight": parts["out"][0], "a.out_proj.bias": parts["out"][1]}
    else:
        state = {}
        for name in ("k", "v", "q", "out"):
            state |= {f"a.{name}_proj.weight": parts[name][0], f"a.{name}_proj.bias": parts[name][1]}
    ours, report = outputs_of(nn.MultiHeadDotProductAttention(2), state, x)
    np.testing.assert_allclose(ours, attention(x, *parts.values(), heads=2), rtol=1e-4, atol=1e-5)
    said = {entry.name: entry.why for entry in report}["params/layer/key/kernel"]
    rows = "rows 6 to 11 of 18, " if stacked else ""
    assert said == f"{rows}transposed, shape (6, 6) to (6, 2, 3), by its name, as a key"


def test_a_table_of_positions_loses_its_leading_one():
    class Positions(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + self.param("position", nn.initializers.zeros, (5, 6))[None]

    x, table = noise(2, 5, 6), noise(1, 5, 6)
    weights, report = weights_from({"pos_embed": table}, Positions(), x)
    np.testing.assert_array_equal(weights.params["position"], table[0])
    assert report[0].why == "shape (1, 5, 6) to (5, 6)"


def test_layers_that_are_stacked_are_refused():
    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            step = nn.scan(
                lambda layer, x, _: (layer(x), None), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            return step(nn.Dense(4), x, None)[0]

    with pytest.raises(
        ValueError, match=r"module must have each layer once; the numbers of Dense_0, a Dense, .*\(3, 4, 4\)"
    ):
        weights_from({"a.weight": noise(4, 4)}, Scanned(), noise(2, 4))

"""The convolution of the networks: in each form values and gradients are XLA's, and those of slow loops."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads
from slow_networks import images, slow_convolution

from kdjax.models import convolve
from kdjax.models._convolution import convolve_in_groups


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("channels", "wide"), [(1, False), (3, False), (4, False), (4, True)])
def test_convolution_and_its_gradients_are_xlas(padding, channels, wide, monkeypatch):
    monkeypatch.setattr("kdjax.models._convolution.WIDE", 0 if wide else np.inf)
    inputs, kernel = images(2, 7, 6, channels), images(3, 3, channels, 4, seed=1)

    def xla(inputs, kernel):
        return lax.conv_general_dilated(inputs, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    ours, back = jax.vjp(lambda *both: convolve(*both, padding), inputs, kernel)
    theirs, back_theirs = jax.vjp(xla, inputs, kernel)
    cotangent = images(*ours.shape, seed=2)
    np.testing.assert_allclose(ours, slow_convolution(inputs, kernel, padding), rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(back(cotangent), back_theirs(cotangent), rtol=1e-5, atol=1e-5)

    @jax.jit
    def ours_jitted(*both):
        return convolve(*both, padding)

    modes = ["rev"] if wide else ["fwd", "rev"]
    check_grads(ours_jitted, (inputs, kernel), order=2, modes=modes, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("batch", "rows", "columns", "stride", "dtype"),
    [
        (16, 3, 3, 1, "float32"),
        (7, 2, 4, 1, "float32"),
        (9, 1, 1, 1, "float32"),
        (8, 4, 3, 1, "float64"),
        (16, 3, 3, 1, "bfloat16"),
        (8, 3, 3, 2, "float32"),
        (4, 1, 1, 2, "float32"),
        (8, 4, 3, 3, "float64"),
    ],
)
def test_a_gradient_in_blocks_is_xlas(batch, rows, columns, stride, dtype, padding):
    p, q = ((rows - 1) // 2, (columns - 1) // 2) if padding == "SAME" else (0, 0)
    borders = ((p, rows - 1 - p), (q, columns - 1 - q)) if padding == "SAME" else "VALID"

    def xla(inputs, kernel):
        return lax.conv_general_dilated(
            inputs, kernel, (stride, stride), borders, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def ours(inputs, kernel):
        return convolve(inputs, kernel, padding, stride=stride, in_blocks=True)

    def gradient(convolve, *arrays):
        value, back = jax.vjp(convolve, *arrays[:2])
        return value, *back(arrays[2])

    with jax.enable_x64(dtype == "float64"):
        inputs, kernel = images(batch, 7, 6, 4), images(rows, columns, 4, 3, seed=1)
        arrays = [inputs, kernel, images(*jax.eval_shape(xla, inputs, kernel).shape, seed=2)]
        arrays = [jnp.asarray(array, dtype) for array in arrays]
        found = jax.jit(partial(gradient, ours))(*arrays)
        exact = gradient(xla, *(array.astype(jnp.promote_types(dtype, "float32")) for array in arrays))
        near = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2**-7}[dtype]
        for one, other in zip(found, exact, strict=True):
            assert one.dtype == jnp.dtype(dtype)
            np.testing.assert_allclose(one.astype(other.dtype), other, rtol=near, atol=near * np.abs(other).max())
        if dtype == "float64":
            check_grads(jax.jit(ours), arrays[:2], order=2, modes=["rev"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("stride", "in_blocks"), [(1, True), (2, True), (1, False)])
def test_no_pictures_have_no_gradient(stride, in_blocks):
    def total(inputs, kernel):
        return convolve(inputs, kernel, "SAME", stride=stride, in_blocks=in_blocks).sum()

    value, (of_inputs, of_kernel) = jax.value_and_grad(total, (0, 1))(images(0, 4, 4, 64), images(3, 3, 64, 128))
    assert (value, of_inputs.shape, of_kernel.shape) == (0.0, (0, 4, 4, 64), (3, 3, 64, 128))
    assert not of_kernel.any()


def test_devices_without_pictures_add_no_gradient():
    def total(inputs, kernel):
        return jax.lax.psum(convolve(inputs, kernel, "SAME", in_blocks=True).sum(), "data")

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    split = jax.jit(jax.grad(jax.shard_map(total, mesh=mesh, in_specs=(rows, whole), out_specs=whole), 1))
    assert not split(images(0, 4, 4, 8), images(3, 3, 8, 16)).any()


def test_a_stride_needs_blocks():
    with pytest.raises(ValueError, match="in_blocks must be True where stride is not 1; got stride 2"):
        convolve(images(1, 4, 4, 4), images(3, 3, 4, 4), "SAME", stride=2)


@pytest.mark.parametrize(
    ("size", "stride", "groups", "channels"), [(1, 1, 1, 6), (1, 1, 3, 6), (3, 1, 6, 6), (3, 2, 6, 6), (3, 2, 3, 6)]
)
def test_convolution_in_groups_or_of_one_tap_is_xlas(size, stride, groups, channels):
    inputs, kernel = images(2, 7, 6, channels), images(size, size, channels // groups, 6, seed=1)

    def xla(inputs, kernel):
        return lax.conv_general_dilated(
            inputs,
            kernel,
            (stride, stride),
            [(size // 2, size // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def ours(inputs, kernel):
        if groups == 1:
            return convolve(inputs, kernel, "SAME")
        return convolve_in_groups(inputs, kernel, stride, groups)

    found, back = jax.vjp(ours, inputs, kernel)
    theirs, back_theirs = jax.vjp(xla, inputs, kernel)
    cotangent = images(*found.shape, seed=2)
    chex.assert_trees_all_close(found, theirs, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(back(cotangent), back_theirs(cotangent), rtol=1e-5, atol=1e-5)
    half = ours(inputs.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), theirs, rtol=0, atol=0.02 * np.ptp(theirs))


def test_pictures_in_bfloat16_are_summed_in_float32():
    inputs, kernel = (array.astype(jnp.bfloat16) for array in (images(4, 8, 8, 3), images(3, 3, 3, 5, seed=1)))
    seen = convolve(inputs, kernel, "SAME")
    exact = slow_convolution(*(array.astype(jnp.float32) for array in (inputs, kernel)), "SAME")
    assert seen.dtype == jnp.bfloat16
    np.testing.assert_allclose(seen.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)  # one rounding

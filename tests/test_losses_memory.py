"""How much memory the losses that could take most of it ask for: XLA's own account of the compiled program."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from kdjax.losses import Bank, crd, neuron_selectivity, rkd_angle

BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}


def compiled(loss, *arrays):
    """The program of the mean's value and gradient; shapes are enough for it."""

    def mean(*arrays):
        result = loss(*arrays)
        values, other = result if isinstance(result, tuple) else (result, None)
        return values.mean(), other

    return jax.jit(jax.value_and_grad(mean, has_aux=True)).lower(*arrays).compile()


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def whole_numbers(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def megabytes(program):
    """Over the inputs."""
    sizes = program.memory_analysis()
    return (sizes.temp_size_in_bytes + sizes.output_size_in_bytes) / 1e6


def largest_array(program):
    """In MB, of all that the program's text names."""
    arrays = re.findall(r"\b(f32|s32|u32|pred)\[([\d,]+)\]", program.as_text())
    return max(BYTES[kind] * math.prod(map(int, shape.split(","))) for kind, shape in arrays) / 1e6


@pytest.mark.parametrize("block", [1, 8])
def test_blocks_keep_angles_small(block):
    points = floats(1024, 128)
    program = compiled(partial(rkd_angle, block=block), points, points)
    assert megabytes(program) < 350
    assert largest_array(program) <= 4 * block * 1024**2 / 1e6  # neither [B, B, B] nor [B, B, D]


def test_without_blocks_all_angles_are_there_at_once():
    points = floats(256, 128)
    assert megabytes(compiled(rkd_angle, points, points)) > 4 * 256**3 / 1e6


def test_neuron_selectivity_never_multiplies_all_pairs_of_maps():
    batch, height, width, channels, others = 64, 8, 8, 128, 256
    student, teacher = floats(batch, height, width, channels), floats(batch, height, width, others)
    products = 4 * batch * channels * others * height * width / 1e6
    program = compiled(neuron_selectivity, student, teacher)
    assert megabytes(program) < products / 4
    # The teacher's own [batch, channels, channels] is the largest that the definition needs.
    assert largest_array(program) <= 4 * batch * others * others / 1e6


def test_crd_gathers_its_negatives_in_chunks():
    batch, dim, negatives, size = 64, 128, 16_384, 50_000
    bank = Bank(floats(size, dim), floats(size, dim), floats(2), whole_numbers())
    embeddings = floats(batch, dim)
    program = compiled(crd, embeddings, embeddings, whole_numbers(batch), bank, whole_numbers(batch, negatives))
    assert megabytes(program) < 300
    assert largest_array(program) <= 4 * size * dim / 1e6  # the bank itself; all the gathered would be 537 MB

"""The number that `crd` gives beside a bank that changes: the slow reference's, finite, the same in chunks and in parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from banks import BATCH, SIZE, close, in_float64, jitted, made, mean_and_rest, value_and_gradients
from compiler import AS_USERS_HAVE_IT
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax import losses


@pytest.mark.parametrize("batches", [0, 1, 3, 4, 5])
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_agrees_with_the_slow_reference(batches, precision):
    keywords = {"temperature": 0.2, "momentum": 0.3, "warmup": 4}
    with jax.enable_x64(precision is np.float64):
        student, teacher, indices, bank, negatives = made(batches, dtype=precision, batches=batches)
        # A bank in float64 has no rounding of its own.
        bank = bank._replace(
            **{name: getattr(bank, name).astype(precision) for name in ("student", "teacher", "log_normalisers")}
        )
        values, new = jitted(**keywords, chunk=3)(student, teacher, indices, bank, negatives)
    exact = (np.asarray(a, np.float64) for a in (student, teacher))
    wanted, arrays = references.crd(*exact, np.asarray(indices), in_float64(bank), np.asarray(negatives), **keywords)
    assert values.shape == (BATCH,)
    assert values.dtype == precision
    relative = 1e-4 if precision is np.float32 else 1e-11
    close(values, wanted, relative, relative)
    for array, wanted_array in zip(new, arrays, strict=True):
        close(array, wanted_array, relative, relative)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_chunks_change_nothing_but_memory(chunk):
    arrays = made(1)
    # Either rounds by its own order of the sums, to 1e-5 at most by the compiler that users have.
    of_all, of_chunk = (
        jax.value_and_grad(functools.partial(mean_and_rest, **keywords), argnums=(0, 1), has_aux=True)
        for keywords in ({}, {"chunk": chunk})
    )
    (whole, (_, bank)), wanted = jax.jit(of_all, compiler_options=AS_USERS_HAVE_IT)(*arrays)
    (value, (_, new)), gradients = jax.jit(of_chunk, compiler_options=AS_USERS_HAVE_IT)(*arrays)
    close(value, whole, 1e-6)
    jax.tree.map(functools.partial(close, relative=1e-5, absolute=1e-7), (new, gradients), (bank, wanted))


def test_the_first_batch_takes_its_own_normaliser_for_a_constant():
    student, teacher, indices, bank, negatives = made(2, batches=0)
    (value, (_, new)), gradients = value_and_gradients(student, teacher, indices, bank, negatives)
    fixed = bank._replace(log_normalisers=new.log_normalisers, batches=jnp.int32(1))
    (again, _), gradients_again = value_and_gradients(student, teacher, indices, fixed, negatives)
    close(again, value, 1e-6)
    close(gradients_again, gradients, 1e-5, 1e-6)


def test_falls_to_partners_and_rises_to_strangers():
    bank = losses.init_bank(jax.random.key(0), SIZE, 64)._replace(
        batches=jnp.int32(1), log_normalisers=jnp.full(2, 3.0)
    )
    indices = jnp.arange(4)
    negatives = losses.draw_negatives(jax.random.key(1), indices, 20, SIZE)
    partners, _ = jitted()(bank.teacher[indices], bank.student[indices], indices, bank, negatives)
    strangers, _ = jitted()(bank.teacher[indices + 4], bank.student[indices + 4], indices, bank, negatives)
    assert (partners > 0).all()
    assert (partners + 5 < strangers).all()


# Finite everywhere


def of_student(change):
    return lambda student, teacher, *rest: (change(student), teacher, *rest)


def first_batch(student, teacher, indices, bank, negatives):
    return student, teacher, indices, bank._replace(batches=jnp.int32(0)), negatives


BAD_POINTS = {
    "zeros": lambda student, teacher, *rest: (0 * student, 0 * teacher, *rest),
    "student zero": of_student(lambda a: 0 * a),
    "one zero": of_student(lambda a: a.at[0].set(0)),
    "identical": of_student(lambda a: jnp.repeat(a[:1], BATCH, axis=0)),
    "student equals teacher": lambda student, _, *rest: (student, student, *rest),
    "a batch of one": lambda student, teacher, indices, bank, negatives: (
        student[:1],
        teacher[:1],
        indices[:1],
        bank,
        negatives[:1],
    ),
    "huge": of_student(lambda a: jnp.sign(a) * 3e4),
    "the bank's own": lambda _, teacher, indices, bank, negatives: (
        bank.teacher[indices].astype(teacher.dtype),
        teacher,
        indices,
        bank,
        negatives,
    ),
    "one place alone": lambda student, teacher, indices, bank, negatives: (
        student,
        teacher,
        0 * indices,
        bank,
        0 * negatives,
    ),
    "a bank of zeros": lambda student, teacher, indices, bank, negatives: (
        student,
        teacher,
        indices,
        bank._replace(student=0 * bank.student, teacher=0 * bank.teacher),
        negatives,
    ),
    "the first batch": first_batch,
    "the first batch, zeros": lambda *arrays: first_batch(0 * arrays[0], 0 * arrays[1], *arrays[2:]),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("temperature", [0.07, 0.004])
def test_finite_value_gradient_and_bank_at_bad_points(dtype, temperature):
    """At τ = 0.004, exp(1/τ) is 1e108: no float32 holds it."""
    for point, change in BAD_POINTS.items():
        arrays = change(*made(9, dtype=dtype))
        (_, (values, bank)), gradients = value_and_gradients(*arrays, temperature=temperature)
        assert values.dtype == jnp.float32, point
        assert np.isfinite(values).all(), point
        assert (values >= 0).all(), point
        assert all(np.isfinite(array).all() for array in bank), point
        for gradient in gradients:
            assert gradient.dtype == dtype
            assert np.isfinite(np.asarray(gradient, np.float32)).all(), point


# Under every transformation


def test_maps_and_scans_as_a_loop_does():
    several = [made(seed) for seed in range(3)]
    wanted = jax.tree.map(lambda *a: jnp.stack(a), *(jitted()(*arrays) for arrays in several))
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *several)
    scanned = jax.jit(lambda all_of_them: lax.scan(lambda carry, one: (carry, losses.crd(*one)), 0, all_of_them)[1])
    for values in (jax.jit(jax.vmap(losses.crd))(*stacked), scanned(stacked)):
        jax.tree.map(functools.partial(close, relative=1e-5, absolute=1e-6), values, wanted)


@pytest.mark.parametrize("batches", [0, 3])
@pytest.mark.parametrize("way", ["jit, bank on every device", "jit, bank split", "shard_map"])
def test_a_batch_split_over_devices_is_the_whole_batch(way, batches):
    arrays = made(11, batches=batches)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split, everywhere = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    student, teacher, indices, bank, negatives = arrays
    student, teacher, indices, negatives = jax.device_put((student, teacher, indices, negatives), split)
    if way == "jit, bank split":
        bank = jax.device_put(bank, losses.Bank(split, split, everywhere, everywhere))
    else:
        bank = jax.device_put(bank, everywhere)

    def gathered(student, teacher, indices, bank, negatives):
        """As the train step does it: gather, then the mean over devices of the loss within and the gradients without."""

        def loss(own_student, own_teacher):
            whole = (lax.all_gather(a, "data", tiled=True) for a in (own_student, own_teacher, indices, negatives))
            student, teacher, all_indices, all_negatives = whole
            values, new = losses.crd(student, teacher, all_indices, bank, all_negatives)
            new = new._replace(**{name: lax.pmean(getattr(new, name), "data") for name in new._fields[:3]})
            return lax.pmean(values.mean(), "data"), (lax.pmean(values, "data"), new)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(student, teacher)

    data, whole = PartitionSpec("data"), PartitionSpec()
    function = (
        jax.jit(
            jax.shard_map(
                gathered,
                mesh=mesh,
                in_specs=(data, data, data, whole, data),
                out_specs=((whole, (whole, whole)), (data, data)),
            )
        )
        if way == "shard_map"
        else value_and_gradients
    )
    split_answer = function(student, teacher, indices, bank, negatives)
    jax.tree.map(functools.partial(close, relative=1e-5, absolute=1e-6), split_answer, value_and_gradients(*arrays))

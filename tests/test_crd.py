"""The bank of contrastive representation distillation: what the row of `crd`, whose bank is a constant, cannot ask."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax import checkpoints, losses, training
from kdjax._types import Weights

SIZE, DIM, BATCH, COUNT = 12, 5, 8, 7


def made(seed=0, batch=BATCH, dtype=np.float32, batches=3):
    """Embeddings, indices, a bank that has seen some batches, negatives."""
    generator = np.random.default_rng(seed)
    student, teacher = generator.standard_normal((2, batch, DIM))
    bank = losses.init_bank(jax.random.key(seed), SIZE, DIM)
    bank = bank._replace(log_normalisers=jnp.array([4.0, 5.0], jnp.float32), batches=jnp.int32(batches))
    indices = generator.permutation(SIZE)[:batch]
    negatives = losses.draw_negatives(jax.random.key(seed), jnp.asarray(indices), COUNT, SIZE)
    return jnp.asarray(student, dtype), jnp.asarray(teacher, dtype), jnp.asarray(indices), bank, negatives


def in_float64(bank):
    return losses.Bank(*(np.asarray(a, np.float64) for a in bank[:3]), int(bank.batches))


def close(actual, wanted, relative=1e-4, absolute=1e-5):
    np.testing.assert_allclose(np.asarray(actual, np.float64), np.asarray(wanted, np.float64), relative, absolute)


@functools.cache
def jitted(**keywords):
    return jax.jit(functools.partial(losses.crd, **keywords))


def mean_and_rest(student, teacher, *rest, **keywords):
    values, bank = losses.crd(student, teacher, *rest, **keywords)
    return values.mean(), (values, bank)


value_and_gradients = jax.jit(jax.value_and_grad(mean_and_rest, argnums=(0, 1), has_aux=True))


# The value


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
    (whole, (_, bank)), wanted = value_and_gradients(*arrays)
    of_chunk = jax.value_and_grad(functools.partial(mean_and_rest, chunk=chunk), argnums=(0, 1), has_aux=True)
    (value, (_, new)), gradients = jax.jit(of_chunk)(*arrays)
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


# The bank


def test_the_bank_moves_where_it_should_and_nowhere_else():
    student, teacher, indices, bank, negatives = made(3)
    _, new = jitted(momentum=0.25)(student, teacher, indices, bank, negatives)
    others = np.setdiff1d(np.arange(SIZE), indices)
    for old, moved, embeddings in ((bank.student, new.student, student), (bank.teacher, new.teacher, teacher)):
        np.testing.assert_array_equal(moved[others], old[others])
        directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        mixed = 0.25 * old[indices] + 0.75 * directions
        close(moved[indices], mixed / np.linalg.norm(mixed, axis=1, keepdims=True), 1e-6, 1e-7)
        close(np.linalg.norm(moved, axis=1), np.ones(SIZE), 1e-6)


def test_order_of_the_batch_is_only_an_order():
    student, teacher, indices, bank, negatives = made(4)
    indices = indices.at[5].set(indices[2])  # twice in one batch, with different embeddings
    order = np.random.default_rng(0).permutation(BATCH)
    values, new = jitted()(student, teacher, indices, bank, negatives)
    reordered, again = jitted()(student[order], teacher[order], indices[order], bank, negatives[order])
    close(reordered, values[order], 1e-6)
    jax.tree.map(functools.partial(close, relative=1e-6, absolute=1e-7), again, new)


def test_an_example_twice_in_a_batch_moves_its_entry_by_the_mean():
    student, teacher, indices, bank, negatives = made(5)
    indices = jnp.full_like(indices, 7)
    _, new = jitted()(student, teacher, indices, bank, negatives)
    _, (of_student, of_teacher, *_) = references.crd(
        np.asarray(student), np.asarray(teacher), indices, in_float64(bank), negatives
    )
    close(new.student, of_student, 1e-5, 1e-6)
    close(new.teacher, of_teacher, 1e-5, 1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_an_embedding_without_direction_leaves_its_entry(momentum):
    _, teacher, indices, bank, negatives = made(6)
    _, new = jitted(momentum=momentum)(jnp.zeros((BATCH, DIM)), teacher, indices, bank, negatives)
    close(new.student, bank.student, 1e-6, 1e-7)
    _, new = jitted()(-bank.student[indices], teacher, indices, bank, negatives)
    close(new.student, bank.student, 1e-3, 1e-6)


def test_normalisers_are_the_mean_of_the_first_batches_and_then_stay():
    *_, bank, _ = made(batches=0)
    bank, estimates, kept = bank._replace(log_normalisers=jnp.zeros(2)), [], []
    for seed in range(5):
        student, teacher, indices, _, negatives = made(seed)
        first = bank._replace(batches=jnp.int32(0))
        estimates.append(np.exp(jitted(warmup=3)(student, teacher, indices, first, negatives)[1].log_normalisers))
        bank = jitted(warmup=3)(student, teacher, indices, bank, negatives)[1]
        kept.append(np.exp(bank.log_normalisers))
    for seen in range(5):
        close(kept[seen], np.mean(estimates[: min(seen + 1, 3)], axis=0))


def test_no_gradient_enters_or_leaves_the_bank():
    student, teacher, indices, bank, negatives = made(8)

    def everything(student, teacher, of_student, of_teacher):
        values, new = losses.crd(
            student, teacher, indices, bank._replace(student=of_student, teacher=of_teacher), negatives
        )
        return values.sum(), sum(jnp.sum(array) for array in new[:3])

    derivatives = jax.jit(jax.jacrev(everything, argnums=(0, 1, 2, 3)))
    of_values, of_bank = derivatives(student, teacher, bank.student, bank.teacher)
    assert all(np.abs(gradient).max() > 0 for gradient in of_values[:2])
    for gradient in (*of_values[2:], *of_bank):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_it_is_saved_and_restored_with_the_training_state(tmp_path):
    bank = made()[3]
    state = training.init_state(Weights({"scale": jnp.ones(3)}, {"bank": bank}), optax.sgd(0.1), jax.random.key(0))
    with checkpoints.open_run(tmp_path / "run") as run:
        checkpoints.save_state(run, 1, state)
    empty = jax.tree.map(jnp.zeros_like, bank)
    with checkpoints.open_run(tmp_path / "run") as run:
        restored, _ = checkpoints.restore_state(run, state._replace(model_state={"bank": empty}))
    assert isinstance(restored.model_state["bank"], losses.Bank)
    jax.tree.map(np.testing.assert_array_equal, restored.model_state["bank"], bank)


def test_training_on_it_brings_partners_together():
    """Free embeddings instead of networks: after some epochs each student's nearest teacher is its own."""
    teacher = jax.random.normal(jax.random.key(1), (SIZE, DIM))

    @jax.jit
    def step(student, bank, key):
        indices = jnp.arange(SIZE)
        negatives = losses.draw_negatives(key, indices, 16, SIZE)
        (value, (_, bank)), gradient = jax.value_and_grad(mean_and_rest, has_aux=True)(
            student, teacher, indices, bank, negatives
        )
        return student - 0.1 * gradient, bank, value

    student, bank, history = (
        jax.random.normal(jax.random.key(2), (SIZE, DIM)),
        losses.init_bank(jax.random.key(0), SIZE, DIM),
        [],
    )
    for number in range(100):
        student, bank, value = step(student, bank, jax.random.key(number))
        history.append(float(value))
    assert history[-1] < 0.6 * history[0]
    np.testing.assert_array_equal(np.argmax(student @ bank.teacher.T, axis=1), np.arange(SIZE))


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


# What is wrong is said


@pytest.mark.parametrize(
    ("change", "keywords", "words"),
    [
        ({0: lambda a: a[:, :4]}, {}, r"student and teacher must have the same shape; got \(8, 4\) for student"),
        ({0: lambda a: a[0]}, {}, r"student must have 2 axes, \[batch, dim\]"),
        ({2: lambda a: a[:5]}, {}, r"student and indices must have the same batch size.*\(8, 5\).*\(5,\)"),
        ({2: lambda a: a.astype(jnp.float32)}, {}, r"indices must be whole numbers of shape \[batch\]; got .* float32"),
        ({4: lambda a: a[:5]}, {}, r"negatives must be whole numbers of shape \[8, count\]; got shape \(5, 7\)"),
        ({4: lambda a: a[:, :0]}, {}, r"negatives must be .*; got shape \(8, 0\)"),
        ({4: lambda a: a.astype(jnp.float32)}, {}, r"negatives must be whole numbers .* dtype float32"),
        (
            {3: lambda b: b._replace(student=b.student[:, :3])},
            {},
            r"bank.student must have shape \[12, 5\]; got \(12, 3\)",
        ),
        ({3: lambda b: b._replace(teacher=b.teacher[:9])}, {}, r"bank.teacher must have shape \[12, 5\].*\(9, 5\)"),
        ({}, {"momentum": 1.5}, "momentum must lie between 0.0 and 1.0; got 1.5"),
        ({}, {"chunk": 0}, "chunk must be a whole number of 1 or more; got 0"),
        ({}, {"warmup": 2.5}, "warmup must be a whole number of 1 or more; got 2.5"),
    ],
)
def test_bad_call_is_a_named_error(change, keywords, words):
    arrays = [change.get(position, lambda a: a)(array) for position, array in enumerate(made(12))]
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(losses.crd)(*arrays, **keywords)

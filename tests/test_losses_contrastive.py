"""The bank of contrastive representation distillation: what the row of `crd`, whose bank is a constant, cannot ask."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
from banks import BATCH, DIM, SIZE, close, in_float64, jitted, made, mean_and_rest

from kdjax import Weights, checkpoints, losses, training


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
    whole = made(6)[0]
    _, new = jitted(momentum=momentum)(whole.at[2].set(0.0), teacher, indices, bank, negatives)
    close(new.student[indices[2]], bank.student[indices[2]], 1e-6, 1e-7)
    assert (abs(new.student - bank.student).max(axis=1) > 1e-3).sum() == BATCH - 1


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

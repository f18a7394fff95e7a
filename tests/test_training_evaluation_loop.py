"""An evaluation's means are exact: whatever remains, on any devices, from arrays or a stream, with a mask or without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import batch, fresh_state, network, student, teacher, teacher_weights

from kdjax import Outputs, Weights, _checks, metrics
from kdjax.training import data_mesh, make_evaluation, replicate, weights_of

EXAMPLES, SIZE = 35, 8
DATA = {name: array for name, array in batch(EXAMPLES).items() if name != "indices"}


def true_means(weights, its):
    """By NumPy in float64, over all examples at once."""
    inputs, labels = np.asarray(DATA["inputs"]), np.asarray(DATA["labels"])
    logits, taught = (np.asarray(network()(*own, inputs, train=False)[0].logits, np.float64) for own in (weights, its))
    entropy = np.log(np.exp(logits).sum(-1)) - logits[np.arange(EXAMPLES), labels]
    return {
        "accuracy": (logits.argmax(-1) == labels).mean(),
        "cross_entropy": entropy.mean(),
        "agreement": (logits.argmax(-1) == taught.argmax(-1)).mean(),
    }


@pytest.fixture(scope="module")
def evaluated():
    """The student's weights, data with the teacher's outputs, and what is true of them."""
    weights, its = weights_of(fresh_state(5)), teacher_weights()
    said = teacher(*its, DATA["inputs"], train=False)[0]
    means = true_means(weights, its)
    assert len({0, 1, means["accuracy"], means["agreement"]}) == 4, "else one could stand for the other"
    return weights, DATA | {"teacher": Outputs(said.logits, {})}, means


def close(means, true):
    assert means.keys() == true.keys()
    for name, value in true.items():
        assert isinstance(means[name], float)
        np.testing.assert_allclose(means[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("batch_size", [1, 7, 8, 35, 36, 500])
def test_evaluation_is_exact_whatever_remains(batch_size, evaluated):
    weights, arrays, means = evaluated
    evaluate = make_evaluation(student())
    for own in (arrays, jax.device_get(arrays), arrays | {"inputs": np.asarray(arrays["inputs"])}):
        close(evaluate(weights, own, batch_size=batch_size), means)


@pytest.mark.parametrize(("measures", "size"), [(None, 128), ({"accuracy": metrics.accuracy}, 500)])
def test_measures_of_ones_own_keep_their_batches(measures, size):
    """One may compare the examples of a batch: its number, kept by an older run, is of batches of 500."""
    seen = []

    def apply(params, model_state, inputs, *, train, rng=None):
        seen.append(len(inputs))
        return inputs @ params, model_state

    arrays = {"inputs": jnp.eye(3), "labels": jnp.arange(3)}
    assert make_evaluation(apply, measures=measures)(Weights(jnp.eye(3), {}), arrays)["accuracy"] == 1.0
    assert set(seen) == {size}


@pytest.mark.parametrize("batch_size", [8, 6, 500])  # six are no whole number for each device
def test_evaluation_on_four_devices_is_exact(batch_size, evaluated):
    weights, arrays, means = evaluated
    mesh = data_mesh()
    evaluate, weights = make_evaluation(student(), mesh=mesh), replicate(weights, mesh)
    for own in (replicate(arrays, mesh), jax.device_get(arrays)):
        close(evaluate(weights, own, batch_size=batch_size), means)


@pytest.mark.parametrize("mesh", [None, data_mesh], ids=["one device", "four devices"])
def test_evaluation_of_a_stream_counts_what_the_mask_marks(mesh, evaluated):
    weights, arrays, means = evaluated
    mesh = None if mesh is None else mesh()
    weights = weights if mesh is None else replicate(weights, mesh)
    whole = jax.device_get(arrays)

    def filled_up():
        for first in range(0, EXAMPLES, SIZE):
            rows = np.arange(first, first + SIZE)
            mask = rows < EXAMPLES
            rows[~mask] = 0
            one = jax.tree.map(lambda array, rows=rows: array[rows], whole)
            one["inputs"][~mask] = np.nan
            yield one | {"mask": mask}

    def shorter_at_the_end():
        for first in range(0, EXAMPLES, SIZE):
            yield jax.tree.map(lambda array, first=first: array[first : first + SIZE], whole)

    evaluate = make_evaluation(student(), mesh=mesh)
    close(evaluate(weights, filled_up()), means)
    close(evaluate(weights, shorter_at_the_end()), means)


@pytest.mark.parametrize("where", [jnp.asarray, np.asarray], ids=["on the device", "on the host"])
@pytest.mark.parametrize("batch_size", [8, 500])
def test_evaluation_counts_what_the_mask_of_the_data_marks(batch_size, where, evaluated):
    weights, arrays, means = evaluated
    # As many again, of which none counts and each would show.
    more = {"inputs": np.full_like(arrays["inputs"], np.nan), "labels": np.zeros_like(arrays["labels"])}
    more |= {"teacher": jax.tree.map(jnp.zeros_like, arrays["teacher"])}
    both = jax.tree.map(lambda own, other: where(np.concatenate([other, own])), arrays, more)
    mask = where(np.repeat(np.array([0.0, 1.0], np.float32), EXAMPLES))
    close(make_evaluation(student())(weights, both | {"mask": mask}, batch_size=batch_size), means)


def test_evaluation_tells_agreement_only_with_a_teacher(evaluated):
    weights, _, means = evaluated
    del (wanted := dict(means))["agreement"]
    close(make_evaluation(student())(weights, DATA), wanted)


def test_evaluation_without_labels_tells_agreement_alone(evaluated):
    weights, arrays, means = evaluated
    unlabelled = {name: array for name, array in arrays.items() if name != "labels"}
    close(make_evaluation(student())(weights, unlabelled), {"agreement": means["agreement"]})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            DATA | {"mask": jnp.ones((EXAMPLES, 1))},
            r'batch\["mask"\] must have shape \(\d+,\), 0 where an entry does not count; got',
        ),
        (
            [batch(4) | {"mask": jnp.ones(1)}],
            r'batch\["mask"\] must have one row for each example of batch\["inputs"\], \[\(4,\)\]; got shape \(1,\)',
        ),
        ([batch(4) | {"teacher": jnp.ones((1, 5))}], "must have the same batch size"),
        ({"inputs": DATA["inputs"]}, 'batch must have "labels" or "teacher", to measure against; got .*inputs'),
        ([], "arrays must give one batch at least; got none"),
        ([batch(4) | {"mask": np.zeros(4)}], "arrays must have one example at least whose mask is not 0; got none"),
        (jax.tree.map(lambda array: array[:0], DATA), "examples must be a whole number of 1 or more; got 0"),
        (DATA | {"labels": DATA["labels"][:-1]}, "arrays must have one row for each example, all as many"),
    ],
)
def test_what_cannot_be_evaluated_is_said(arrays, message, evaluated):
    with pytest.raises(ValueError, match=message):
        make_evaluation(student())(evaluated[0], arrays)


@pytest.mark.parametrize("where", ["rows", "a stream"])
def test_labels_of_64_bits_are_not_cut_to_classes(where):
    """2³² + 1 in 32 bits is class 1: the accuracy was 1."""
    arrays = {"inputs": np.eye(4, dtype=np.float32), "labels": np.array([0, 2**32 + 1, 2, 3])}

    def network(params, model_state, inputs, *, train, rng=None):
        return 8 * inputs, model_state

    found = make_evaluation(network)(Weights({}, {}), arrays if where == "rows" else [arrays])
    assert np.isnan(found["cross_entropy"])
    assert found["accuracy"] != 1
    large = {"ids": np.array([3_000_000_000, 2**32 - 1], np.uint64)}
    assert _checks.uncut(large)["ids"] is large["ids"]
    good = arrays | {"labels": np.arange(4)}
    assert make_evaluation(network)(Weights({}, {}), good if where == "rows" else [good])["accuracy"] == 1

"""Training that has diverged is found by the stated rule, and an update that is not finite can be left out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import Weights, cross_entropy, init_state, make_train_step, weighted_sum
from kdjax.training import DivergedError, DivergenceWatch, make_epoch, online, skip_non_finite
from kdjax.training.divergence import CALLS_BEHIND, at_rate, check_rate_is_free, of_counted
from kdjax.training.sweeps import make_sweep_step, stack

GOAL = weighted_sum(labels=(1.0, cross_entropy))
DATA = {"inputs": jnp.eye(4), "labels": jnp.arange(4)}


def told(value, weight=1.0):
    return {"loss": value * weight if weight else 0.0, "own": value, "own_weight": weight}


def judged(*each):
    watch = DivergenceWatch()
    for done, metrics in enumerate(each, start=1):
        watch(done, metrics)
    watch.finish({"loss": 0.0})
    return watch


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            (2.0, *[2000.1] * 10),
            r"at step 11 its term 'own' is 2000, more than 1,000 times as much as at the start, 2, as in the 9 before$",
        ),
        ((-2.0, *[2000.1] * 10), r"its term 'own' is 2000, more"),
        (
            (1e-6, *[1000.1] * 10),
            r"more than 1,000 times as much as at the start, 1e-06",
        ),  # a start below 1 counts as 1
        (
            (2.0, 2.1e12),
            r"at step 2 its term 'own' is 2.1e\+12, more than 1,000,000,000,000 times as much as at the start, 2$",
        ),
        ((2.0, float("nan")), r"at step 2 its term 'own' is nan$"),
        ((float("inf"),), r"at step 1 its term 'own' is inf$"),
        # Of a sweep's students one.
        ((np.array([2.0, 2.0]), *[np.array([2.0, 2001.0])] * 10), r"its term 'own' is 2001, more"),
    ],
)
def test_what_has_diverged_is_told_with_step_and_term(values, message):
    with pytest.raises(DivergedError, match=message):
        judged(*map(told, values))


@pytest.mark.parametrize(
    "values",
    [
        (2.0, *[1999.0] * 20),
        (1e-6, *[999.0] * 20),
        (0.0, 0.0),
        (-5.0, 3.0),
        (1e9, 1e11),
        (0.2, *[0.2, 3e4] * 10, *[3e4] * 8),  # batches with an outlier, some of them one after the other
        (1.0, *[-1e20] * 20),  # a term without a lowest value falls
    ],
)
def test_what_has_not_diverged_passes(values):
    assert judged(*map(told, values)).start == {"own": abs(values[0])}


def test_a_term_that_is_to_rise_may():
    assert judged(*(told(value, -1.0) for value in (1.0, *[1e20] * 20))).start == {"own": 1.0}
    with pytest.raises(DivergedError, match=r"its term 'own' is -1e\+20"):
        judged(*(told(value, -1.0) for value in (1.0, -1e20)))


def test_what_has_no_weight_is_not_judged_and_starts_with_its_first_weight():
    watch = judged(told(float("nan"), 0.0), told(1e9, 0.0), told(3e5, 0.1), told(4e5, 0.2))
    assert watch.start == {"own": 3e5}


def test_the_start_of_a_resumed_training_is_that_of_the_run():
    watch = DivergenceWatch({"own": 1e6})
    for done, value in enumerate((2.0, *[1e8] * 10), start=1):
        watch(done, told(value))
    watch.finish({"loss": 1.0})
    with pytest.raises(DivergedError):
        judged(*map(told, (2.0, *[1e8] * 10)))


def test_it_is_seen_within_the_stated_number_of_calls_and_no_metric_is_read_before():
    watch, read = DivergenceWatch(), []

    class Counted(dict):
        def items(self):
            read.append(1)
            return super().items()

    for done in range(CALLS_BEHIND):
        watch(done + 1, Counted(told(float("nan"))))
    assert not read
    with pytest.raises(DivergedError) as seen:
        watch(CALLS_BEHIND + 1, Counted(told(1.0)))
    assert seen.value.done == 1
    assert len(read) == 1


def test_a_resumed_training_is_measured_by_its_first_start():
    watch = DivergenceWatch({"own": 2.0})
    for done in range(1, 10):
        watch(done, told(2000.1))
    watch.finish({"loss": 0.0})
    watch(10, told(2000.1))
    with pytest.raises(DivergedError, match=r"at step 10 its term 'own' is 2000, .* as in the 9 before"):
        watch.finish({"loss": 0.0})


@pytest.mark.parametrize("several", [False, True])
def test_a_skipped_call_is_no_start_and_ends_no_rise(several):
    watch, skipped, other = DivergenceWatch(), told(0.0) | {"skipped": 1.0}, told(2.0) | {"skipped": 0.0}
    calls = [skipped, told(50.0), *[told(60_000.0)] * 5, skipped, *[told(60_000.0)] * 5]
    for done, metrics in enumerate(calls, start=1):
        both = {name: np.array([other[name], value]) for name, value in ({"skipped": 0.0} | metrics).items()}
        watch(done, both if several else metrics)
    with pytest.raises(
        DivergedError, match=r"at step 13 its term 'own' is 6e\+04, .* at the start, 50, as in the 9 before"
    ):
        watch.finish({"loss": 0.0})


def test_a_batch_of_which_a_term_counts_nothing_is_no_start_and_ends_no_rise():
    def of(value, count):
        return told(value) | {"own count": count}

    empty = of(0.0, 0.0)
    watch = judged(empty, of(50.0, 3.0), *[of(2_000.0, 3.0)] * 20)
    assert watch.start == {"own": 50.0}
    with pytest.raises(DivergedError, match="more than 1,000 times as much as at the start, 50"):
        judged(of(50.0, 3.0), *[of(60_000.0, 3.0), empty] * 12)


def test_the_means_of_an_epoch_are_judged_too():
    watch = DivergenceWatch()
    watch(1, told(1.0))
    with pytest.raises(DivergedError, match="up to step 1 the mean of its loss is nan"):
        watch.finish({"loss": float("nan")})
    with pytest.raises(DivergedError, match=r"^up to step 0 the mean of its loss is nan$"):
        DivergenceWatch().finish({"loss": float("nan")})


def network(params, model_state, inputs, *, train, rng=None):
    return inputs @ params["kernel"], {"mean": jnp.mean(inputs)}


def started(optimizer):
    return init_state(Weights({"kernel": jnp.eye(4)}, {"mean": jnp.zeros(())}), optimizer, jax.random.key(0))


def test_an_update_that_is_not_finite_is_left_out_with_its_statistics_and_counted():
    optimizer = optax.adam(0.1)
    step = jax.jit(skip_non_finite(make_train_step(network, None, optimizer)))
    broken = DATA | {"inputs": DATA["inputs"].at[0, 0].set(jnp.nan)}
    first, metrics = step(started(optimizer), None, GOAL, DATA)
    assert float(metrics["skipped"]) == 0.0
    assert float(metrics["loss"]) > 0
    second, metrics = step(first, None, GOAL, broken)
    assert float(metrics["skipped"]) == 1.0
    assert float(metrics["loss"]) == 0.0
    assert int(second.step) == 2
    same = jax.tree.map(np.array_equal, first._replace(step=0, rng=0), second._replace(step=0, rng=0))
    assert all(jax.tree.leaves(same))
    plain, _ = jax.jit(make_train_step(network, None, optimizer))(first, None, GOAL, broken)
    assert not np.isfinite(plain.params["kernel"]).all()  # the control: without it all is lost


def test_what_was_not_finite_before_leaves_no_update_out():
    """A mask of -inf in the model_state, or a controller's `best`, stopped all training, with a loss of 0."""

    def masked(params, model_state, inputs, *, train, rng=None):
        return jnp.tanh(inputs) @ params["kernel"], model_state | {"mean": jnp.sum(inputs)}

    state = started(optax.sgd(0.1))
    state = state._replace(model_state=state.model_state | {"mask": jnp.array([0.0, -jnp.inf])})
    step = make_train_step(masked, None, optax.sgd(0.1))
    (plain, _), (guarded, metrics) = (one(state, None, GOAL, DATA) for one in (step, skip_non_finite(step)))
    assert float(metrics["skipped"]) == 0.0
    np.testing.assert_array_equal(guarded.params["kernel"], plain.params["kernel"])
    huge = DATA | {"inputs": jnp.full((4, 4), 3e38)}  # their sum is infinite, the loss is not
    assert float(skip_non_finite(step)(state, None, GOAL, huge)[1]["skipped"]) == 1.0


def test_an_update_that_leaves_an_infinite_moment_is_left_out():
    """Adam would divide by it for ever, and stand still."""
    optimizer = optax.adam(0.1)
    step = jax.jit(skip_non_finite(make_train_step(network, None, optimizer)))
    state, seen = started(optimizer), []
    for number in range(4):
        inputs = DATA["inputs"] * (1e21 if number == 1 else 1.0)
        state, metrics = step(state, None, GOAL, DATA | {"inputs": inputs, "labels": DATA["labels"][::-1]})
        seen.append((float(metrics["skipped"]), state.params["kernel"]))
    assert [skipped for skipped, _ in seen] == [0, 1, 0, 0]
    assert bool((seen[1][1] == seen[0][1]).all())
    assert bool((seen[2][1] != seen[1][1]).any())
    assert bool((seen[3][1] != seen[2][1]).any())


def test_a_mean_teacher_does_not_follow_an_update_that_was_left_out():
    optimizer = optax.sgd(0.1)
    step = online.make_mean_teacher_step(skip_non_finite(make_train_step(network, network, optimizer)), 0.5)
    pair, _ = step(online.init_mean_teacher(started(optimizer)), None, GOAL, DATA)
    for first, moves in ((jnp.nan, False), (1.0, True)):
        data = DATA | {"inputs": DATA["inputs"].at[0, 0].set(first)}
        _, average = step(pair, None, GOAL, data)[0]
        assert bool((average.params["kernel"] != pair[1].params["kernel"]).any()) == moves


def test_means_are_over_what_was_not_skipped():
    optimizer = optax.sgd(0.0)
    epoch = make_epoch(skip_non_finite(make_train_step(network, None, optimizer)))
    arrays = {"inputs": jnp.stack([jnp.ones(4), jnp.full(4, jnp.inf)]), "labels": jnp.zeros(2, jnp.int32)}
    watch = DivergenceWatch()
    _, means = epoch(started(optimizer), None, GOAL, arrays, np.array([[0], [1], [1], [0]]), watch=watch)
    watch.finish(means)
    assert means["skipped"] == 0.5
    np.testing.assert_allclose(of_counted(means)["loss"], np.log(4), rtol=1e-6)
    assert of_counted({"labels": 2.0, "labels count": 6.0, "skipped": 0.25}) == {
        "labels": 2.0, "labels count": 8.0, "skipped": 0.25,
    }  # fmt: skip
    of_several = of_counted({"loss": np.array([1.0, 0.0, 3.0]), "skipped": np.array([0.5, 1.0, 0.0])})
    assert of_several["loss"].tolist() == [2.0, 0.0, 3.0]
    with pytest.raises(DivergedError, match="every update was skipped"):
        watch.finish({"loss": 0.0, "skipped": 1.0})
    with pytest.raises(DivergedError, match="every update of student 1 and 2 was skipped"):
        watch.finish({"loss": np.zeros(3), "skipped": np.array([0.5, 1.0, 1.0])})


def test_of_several_students_in_one_program_each_skips_by_itself():
    """Guarded as one, a student that diverged stopped all of them."""
    optimizer = optax.sgd(0.5)
    step, one = make_train_step(network, None, optimizer), started(optimizer)
    states = stack([one, one._replace(params={"kernel": jnp.full((4, 4), jnp.nan)})])

    def begin_sweep(sweep):
        return sweep(states, None, stack([GOAL, GOAL]), DATA)

    with pytest.raises(ValueError, match=r"step must be of one student, .* make_sweep_step\(skip_non_finite\(step\)\)"):
        begin_sweep(skip_non_finite(make_sweep_step(step)))
    _, metrics = begin_sweep(make_sweep_step(skip_non_finite(step)))
    assert metrics["skipped"].tolist() == [0.0, 1.0]


def test_a_lower_rate_is_that_of_the_optimizer_built_with_it():
    params, gradient = jnp.ones(3), jnp.array([1.0, -2.0, 3.0])
    for make in (optax.sgd, optax.adam, lambda rate: optax.adamw(rate, weight_decay=0.3)):
        lower, built = at_rate(make(0.4), 0.25), make(0.1)
        (own, state), (wanted, of_built) = (one.update(gradient, one.init(params), params) for one in (lower, built))
        np.testing.assert_allclose(own, wanted, rtol=1e-6)
        assert jax.tree.structure(state) == jax.tree.structure(of_built)
    with pytest.raises(ValueError, match="rate must be a finite number greater than 0; got 0"):
        at_rate(optax.sgd(0.1), 0)


@pytest.mark.parametrize("name", ["ScheduleFree", "Lookahead", "Linesearch", "SAM"])
def test_optimizers_that_move_params_of_their_own_have_no_lower_rate(name):
    """A tenth of schedule_free's updates moves its sequences apart: the averaged params are then of neither rate."""
    make, params = {
        "ScheduleFree": (lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1), jnp.ones(3)),
        "Lookahead": (
            lambda: optax.lookahead(optax.sgd(0.1), 2, 0.5),
            optax.LookaheadParams.init_synced(jnp.ones(3)),
        ),
        "Linesearch": (optax.lbfgs, jnp.ones(3)),
        "SAM": (lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)), jnp.ones(3)),
    }[name]
    optimizer = optax.chain(optax.clip(1.0), make())
    with pytest.raises(ValueError, match=f"diverged must be 'stop' or 'skip' with this optimizer: .*{name}State"):
        check_rate_is_free(optimizer.init(params))
    check_rate_is_free(optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1), opaque_mode=True).init(params))
    slower = at_rate(optimizer, 0.1)
    with pytest.raises(ValueError, match="diverged must be"):
        slower.update(jax.tree.map(jnp.ones_like, params), slower.init(params), params)

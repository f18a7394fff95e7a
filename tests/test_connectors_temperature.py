"""The temperature that is learnt against the student: which way it moves, how strongly, within what bounds, and wherever."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from connected import batch, network, student, teacher
from saved import bits

from kdjax import Outputs, connectors, init_state, make_train_step, on_outputs, schedules, weighted_sum
from kdjax.checkpoints import open_run, restore_state, save_state
from kdjax.connectors import Seen
from kdjax.losses import soft_target_kl
from kdjax.training import data_mesh, jit_step, pmap_step, shard_batch, shard_map_step, split_batch, train_only

NOTHING = Outputs(jnp.zeros((2, 3)), {})
SOFT = on_outputs(soft_target_kl, "student.logits", "teacher.logits", temperature="student.t")
OBJECTIVE = weighted_sum(soft=(1.0, SOFT))
HALF_WAVE = schedules.cosine(0.0, 1.0, steps=4)


def sgd():
    return optax.sgd(0.05, momentum=0.9)


def fresh(connector, optimizer=None, seed=0):
    beside = {"t": connector}
    weights = connectors.init_beside(
        beside, jax.random.key(3), network, student(), network, teacher(), batch()["inputs"]
    )
    return beside, init_state(weights, optimizer or sgd(), jax.random.key(seed))


def made_step(connector, optimizer=None, axis_name=None):
    beside, state = fresh(connector, optimizer)
    return make_train_step(network, network, optimizer or sgd(), connectors=beside, axis_name=axis_name), state


def raw(state):
    return float(state.params["connectors"]["t"]["raw"])


def temperature(state, low=1.0, high=21.0):
    return low + (high - low) / (1.0 + math.exp(-raw(state)))


def loss_at(value):
    """By another route: the term alone, at a temperature given as a number."""
    outputs = [network(*weights, batch()["inputs"], train=False)[0].logits for weights in (student(), teacher())]
    student_logits, teacher_logits = (np.asarray(logits, np.float64) / value for logits in outputs)

    def log_softmax(logits):
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    log_s, log_t = log_softmax(student_logits), log_softmax(teacher_logits)
    return value**2 * (np.exp(log_t) * (log_t - log_s)).sum(1).mean()


@pytest.mark.parametrize(("strength", "initial"), [(0.0, 2.0), (0.25, 3.0), (1.0, 2.0)])
def test_the_gradient_is_reversed_and_scaled(strength, initial):
    """One step of plain SGD at rate 1 moves θ by λ ∂L/∂θ: up the loss, as finite differences of the plain loss say."""
    step, state = made_step(connectors.learnt_temperature(strength, initial=initial), optax.sgd(1.0))
    start, width = raw(state), 1e-4

    def loss(theta):
        return loss_at(1.0 + 20.0 / (1.0 + math.exp(-theta)))

    slope = (loss(start + width) - loss(start - width)) / (2 * width)
    assert abs(slope) > 0.01
    after, metrics = jax.jit(step)(state, teacher(), OBJECTIVE, batch())
    np.testing.assert_allclose(metrics["soft"], loss(start), rtol=1e-4)
    np.testing.assert_allclose(raw(after) - start, strength * slope, rtol=2e-3, atol=1e-7)


def test_the_student_learns_what_it_would_at_a_temperature_that_is_given():
    """The reversal is the temperature's alone."""
    step, state = made_step(connectors.learnt_temperature(1.0, initial=4.0))
    after, _ = jax.jit(step)(state, teacher(), OBJECTIVE, batch())
    plain = make_train_step(network, network, sgd())
    given = weighted_sum(soft=(1.0, on_outputs(soft_target_kl, "student.logits", "teacher.logits", temperature=4.0)))
    expected, _ = jax.jit(plain)(init_state(student(), sgd(), jax.random.key(0)), teacher(), given, batch())
    chex.assert_trees_all_close(connectors.student_of(after).params, expected.params, rtol=1e-5, atol=1e-6)


def test_what_was_learnt_is_among_the_metrics():
    """That of the update itself, before it moves."""
    step, state = made_step(connectors.learnt_temperature(1.0, initial=4.0), optax.sgd(0.5))
    step = jax.jit(step)
    seen = []
    for _ in range(3):
        seen.append(temperature(state))
        state, metrics = step(state, teacher(), OBJECTIVE, batch())
        np.testing.assert_allclose(metrics["soft_temperature"], seen[-1], rtol=1e-6)
    assert seen[0] < seen[1] < seen[2]


def test_the_curriculum_is_half_a_cosine_wave_of_the_steps_seen():
    """λ, by hand: 0, (1 − √½)/2, ½, (1 + √½)/2, 1, 1."""
    connector = connectors.learnt_temperature(HALF_WAVE, initial=4.0)
    params, model_state = connector.init(jax.random.key(0), NOTHING, NOTHING)

    @jax.jit
    def gradient(params, model_state):
        def value(params):
            added, _, after = connector.apply(params, model_state, Seen(NOTHING, None, {}, True, None))
            return added[""], after

        return jax.grad(value, has_aux=True)(params)

    found = []
    for _ in range(6):
        slope, model_state = gradient(params, model_state)
        found.append(-float(slope["raw"]) / (20 * 0.15 * 0.85))  # dτ/dθ at τ = 4
    root = math.sqrt(0.5)
    np.testing.assert_allclose(found, [0, (1 - root) / 2, 0.5, (1 + root) / 2, 1, 1], atol=1e-6)
    assert gradient._cache_size() == 1
    _, _, still = connector.apply(params, model_state, Seen(NOTHING, None, {}, False, None))
    assert int(model_state["step"]) == int(still["step"]) == 6


@pytest.mark.parametrize("up", [True, False], ids=["reversed", "control"])
def test_it_moves_up_the_loss_within_its_bounds(up):
    """The student stands still. The control has λ = −1 from its second step on, which no number may be: it goes down."""
    strength = 1.0 if up else lambda step: -1.0 * (step > 0)
    optimizer = optax.partition(
        {"student": optax.set_to_zero(), "t": optax.sgd(3.0)}, {"student": "student", "connectors": "t"}
    )
    step, state = made_step(connectors.learnt_temperature(strength, initial=3.0, low=2.0, high=5.0), optimizer)
    step, losses, seen = jax.jit(step), [], []
    for _ in range(20):
        state, metrics = step(state, teacher(), OBJECTIVE, batch())
        losses.append(float(metrics["soft"]))
        seen.append(temperature(state, 2.0, 5.0))
    assert (losses[-1] > losses[0]) == up
    assert all(2.0 <= value <= 5.0 for value in seen)
    assert abs(seen[-1] - 3.0) > 0.3
    best = max(losses) if up else min(losses)
    np.testing.assert_allclose(losses[-1], best, rtol=1e-6)


def test_saved_in_the_middle_of_the_curriculum_it_goes_on_to_the_same_bits(tmp_path):
    step, state = made_step(connectors.learnt_temperature(HALF_WAVE))
    step = jax.jit(step)
    with open_run(tmp_path) as run:
        for number in range(1, 5):
            state, _ = step(state, teacher(), OBJECTIVE, batch(number % 2))
            if number == 2:
                save_state(run, number, state)
    with open_run(tmp_path) as run:
        resumed, _ = restore_state(run, fresh(connectors.learnt_temperature(HALF_WAVE))[1])
    assert int(resumed.model_state["connectors"]["t"]["step"]) == 2
    for number in (3, 4):
        resumed, _ = step(resumed, teacher(), OBJECTIVE, batch(number % 2))
    assert bits(resumed) == bits(state)
    assert raw(state) != raw(fresh(connectors.learnt_temperature(HALF_WAVE))[1])
    assert step._cache_size() == 1
    alone = connectors.student_of(state)
    assert jax.tree.structure(alone) == jax.tree.structure(student())


def numbers(result):
    return jax.device_get((result[0]._replace(rng=jax.random.key_data(result[0].rng)), result[1]))


def test_a_split_batch_is_the_whole_one():
    connector = connectors.learnt_temperature(1.0)
    step, state = made_step(connector)
    expected = numbers(jit_step(step)(jax.tree.map(jnp.copy, state), teacher(), OBJECTIVE, batch()))
    assert expected[0].params["connectors"]["t"]["raw"] != raw(state)
    split, mesh = made_step(connector, axis_name="data")[0], data_mesh()
    for way, data in (
        (jit_step(step), shard_batch(batch(), mesh)),
        (pmap_step(split), split_batch(batch(), 4)),
        (shard_map_step(split, mesh), batch()),
    ):
        got = numbers(way(jax.tree.map(jnp.copy, state), teacher(), OBJECTIVE, data))
        chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def test_many_students_have_a_temperature_each():
    step, state = made_step(connectors.learnt_temperature(1.0))
    other = state._replace(params=jax.tree.map(lambda leaf: leaf + 0.5, state.params))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, other)
    together = jax.jit(jax.vmap(step, in_axes=(0, None, None, None)))(both, teacher(), OBJECTIVE, batch())[0]
    for place, one in enumerate((state, other)):
        alone = jax.jit(step)(one, teacher(), OBJECTIVE, batch())[0]
        assert raw(alone) != raw(one)
        np.testing.assert_allclose(together.params["connectors"]["t"]["raw"][place], raw(alone), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strength": -0.5}, r"strength must lie between 0.0 and inf; got -0.5"),
        ({"strength": math.nan}, r"strength must lie between 0.0 and inf; got nan"),
        ({"strength": schedules.linear(-1.0, 1.0, steps=4)}, r"strength must lie between 0.0 and inf"),
        ({"low": 0.0}, "low must be a finite number greater than 0; got 0.0"),
        ({"high": math.inf}, "high must be a finite number greater than 0; got inf"),
        ({"initial": 21.0}, r"initial must lie between low and high, 1.0 and 21.0; got 21.0"),
        ({"low": 5.0, "high": 2.0}, r"initial must lie between low and high, 5.0 and 2.0; got 4.0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        connectors.learnt_temperature(**({"strength": 1.0} | arguments))


# Each example's own


def instance_wise(strength=1.0):
    return connectors.learnt_temperature(strength, initial=4.0, width=6)


def test_each_example_has_a_temperature_that_begins_alike():
    step, state = made_step(instance_wise())
    plain, of_one = made_step(connectors.learnt_temperature(1.0, initial=4.0))
    _, metrics = jax.jit(step)(state, teacher(), OBJECTIVE, batch())
    _, expected = jax.jit(plain)(of_one, teacher(), OBJECTIVE, batch())
    np.testing.assert_allclose(metrics["soft"], expected["soft"], rtol=1e-5)


def temperatures_of(state, connector):
    outputs = [
        network(*weights, batch()["inputs"], train=False)[0] for weights in (connectors.student_of(state), teacher())
    ]
    beside = connectors.connector_of(state, "t")
    return np.asarray(connector.apply(*beside, Seen(*outputs, batch(), False, None))[0][""]), outputs


def test_of_each_example_s_own_the_metrics_have_the_mean_over_those_that_count():
    step, state = made_step(instance_wise())
    drawn = jax.random.normal(jax.random.key(9), state.params["connectors"]["t"]["out"].shape)
    params = {**state.params, "connectors": {"t": {**state.params["connectors"]["t"], "out": drawn}}}
    state = state._replace(params=params)
    found, _ = temperatures_of(state, instance_wise())
    counts = np.arange(len(found)) % 2 == 0
    for more, expected in (({}, found.mean()), ({"mask": jnp.asarray(counts)}, found[counts].mean())):
        _, metrics = jax.jit(step)(state, teacher(), OBJECTIVE, batch() | more)
        np.testing.assert_allclose(metrics["soft_temperature"], expected, rtol=1e-5)


def test_an_example_of_which_the_loss_grows_with_t_gets_a_higher_one():
    """After steps of the temperature alone the loss of the same networks is larger, and temperatures are apart."""
    connector = instance_wise()
    beside, _ = fresh(connector)
    only = train_only(optax.adam(0.02), "^connectors")
    step = jax.jit(make_train_step(network, network, only, connectors=beside))
    state = fresh(connector, only)[1]
    losses = []
    for _ in range(20):
        state, metrics = step(state, teacher(), OBJECTIVE, batch())
        losses.append(float(metrics["soft"]))
    assert losses[-1] > losses[0]
    found, outputs = temperatures_of(state, connector)
    assert found.shape == (len(outputs[0].logits),)
    assert found.std() > 1e-3 * found.mean()
    assert ((found > 1.0) & (found < 21.0)).all()
    chex.assert_trees_all_equal(connectors.student_of(state).params, student().params)


def test_what_it_reads_sends_the_student_no_gradient():
    """The student's update is that at the same temperatures, given as an array."""
    connector = instance_wise()
    step, state = made_step(connector)
    drawn = jax.random.normal(jax.random.key(9), state.params["connectors"]["t"]["out"].shape)
    params = {**state.params, "connectors": {"t": {**state.params["connectors"]["t"], "out": drawn}}}
    state = state._replace(params=params)
    found, _ = temperatures_of(state, connector)
    after, _ = jax.jit(step)(state, teacher(), OBJECTIVE, batch())
    given = weighted_sum(
        soft=(1.0, on_outputs(soft_target_kl, "student.logits", "teacher.logits", temperature="batch.t"))
    )
    plain = make_train_step(network, network, sgd())
    expected, _ = jax.jit(plain)(
        init_state(student(), sgd(), jax.random.key(0)), teacher(), given, batch() | {"t": jnp.asarray(found)}
    )
    assert found.std() > 0.1
    chex.assert_trees_all_close(connectors.student_of(after).params, expected.params, rtol=1e-4, atol=1e-6)


def test_a_width_that_is_none_is_refused():
    with pytest.raises(ValueError, match="width must be a whole number of 1 or more; got 0"):
        connectors.learnt_temperature(1.0, width=0)

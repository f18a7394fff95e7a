"""Many students in one program: as if each had trained alone, one pass of the teacher, and nothing compiled twice."""

import inspect
import re
from functools import cache
from typing import NamedTuple

import chex
import dense
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilations import COMPILATIONS
from dense import batch, objective, optimizer, student, teacher

from kdjax import cross_entropy, init_state, make_train_step, on_feature, on_logits, schedules, weighted_sum
from kdjax.losses import hint, soft_target_kl
from kdjax.training import jit_step, make_epoch, weights_of
from kdjax.training.sweeps import make_sweep_step, stack, unstack

OPTIMIZER = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9)
STEPS = 4


class Setting(NamedTuple):
    seed: int = 0
    temperature: float = 4.0
    labels: float = 0.5
    relations: float = 0.3
    learning_rate: float = 0.1


SETTINGS = (Setting(), Setting(seed=1), Setting(2, 1.5, 0.1, 0.1, 0.02))
WEIGHTS = cache(dense.teacher_weights)


def state_of(setting):
    state = init_state(dense.weights(setting.seed, 4), OPTIMIZER, jax.random.key(setting.seed))
    return state._replace(opt_state=optax.tree.set(state.opt_state, learning_rate=jnp.float32(setting.learning_rate)))


def objective_of(setting):
    weights = {"labels": setting.labels, "soft": 1.0 - setting.labels, "relations": setting.relations}
    return objective(temperature=setting.temperature, **weights)


def stacked(settings=SETTINGS):
    return stack([state_of(setting) for setting in settings]), stack([objective_of(setting) for setting in settings])


class Count:
    """An `Apply` that counts how often it is traced, and how often it is run."""

    def __init__(self, apply):
        self.apply, self.traced, self.run = apply, 0, 0

    def __call__(self, params, model_state, inputs, *, train, rng=None):
        self.traced += 1
        jax.debug.callback(self._ran)
        return self.apply(params, model_state, inputs, train=train, rng=rng)

    def _ran(self):
        self.run += 1


@pytest.fixture(scope="module")
def trained():
    """Three students of three settings after four steps, what they said, and what it took."""
    once, taught = Count(student()), Count(teacher)
    sweep = jit_step(make_sweep_step(make_train_step(once, None, OPTIMIZER), taught))
    states, objectives = stacked()
    weights, compiled, metrics = WEIGHTS(), [], []
    unstack(states)  # compiles its own small program, once for all tests
    data = [batch(seed=number) for number in range(STEPS)]
    for one in data:
        before = COMPILATIONS.count
        states, said = sweep(states, weights, objectives, one)
        compiled.append(COMPILATIONS.count - before)
        metrics.append(said)
    jax.block_until_ready(states)
    jax.effects_barrier()
    counts = {"traced": (once.traced, taught.traced), "teacher runs": taught.run, "compiled": compiled}
    return sweep, states, metrics, counts


@pytest.fixture(scope="module")
def alone():
    """Each setting by itself, one after the other: the ordinary step, with the teacher in it, compiled once for all."""
    step, results = jit_step(make_train_step(student(), teacher, OPTIMIZER)), []
    for setting in SETTINGS:
        # As `stack` makes numbers of one fixed type.
        state, goal = jax.tree.map(jnp.asarray, (state_of(setting), objective_of(setting)))
        metrics = []
        for number in range(STEPS):
            state, said = step(state, WEIGHTS(), goal, batch(seed=number))
            metrics.append(said)
        results.append((readable(state), metrics))
    assert step._cache_size() == 1
    return results


def readable(state):
    return jax.device_get(state._replace(rng=jax.random.key_data(state.rng)))


def test_every_student_is_as_if_it_had_trained_alone(trained, alone):
    _, states, metrics, _ = trained
    for number, (one, (expected, said)) in enumerate(zip(unstack(states), alone, strict=True)):
        chex.assert_trees_all_close(readable(one), expected, rtol=1e-5, atol=1e-5)
        mine = [jax.tree.map(lambda values, n=number: values[n], step) for step in metrics]
        chex.assert_trees_all_close(mine, said, rtol=1e-5, atol=1e-5)
    # Else the comparison would compare one student with itself.
    heads = [np.asarray(state.params["head"]) for state, _ in alone]
    assert min(np.abs(heads[0] - other).max() for other in heads[1:]) > 1e-2


def test_one_pass_of_the_teacher_and_one_compilation_serve_all_students(trained):
    _, _, _, counts = trained
    assert counts["teacher runs"] == STEPS
    assert counts["traced"] == (1, 1)
    assert counts["compiled"] == [1] + [0] * (STEPS - 1)


def test_a_search_over_ten_values_of_everything_compiles_nothing(trained):
    sweep, _, _, counts = trained
    searched = [
        stacked([Setting(seed, 4.0 + number / 2, number / 10, number / 10, 0.01 * number) for seed in range(3)])
        for number in range(1, 11)
    ]
    data, weights = batch(), WEIGHTS()
    before, losses = COMPILATIONS.count, []
    for states, objectives in searched:
        for _ in range(2):
            states, metrics = sweep(states, weights, objectives, data)
        losses.append(metrics["loss"])
    assert COMPILATIONS.count == before
    assert sum(counts["compiled"]) > 0  # else JAX reports compilations by another name, and nothing was counted
    assert len({float(loss[0]) for loss in losses}) == 10


def test_an_epoch_of_a_sweep_gives_each_students_own_means(trained):
    _, expected, metrics, _ = trained
    rows = [batch(seed=number) for number in range(STEPS)]
    arrays = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    order = np.arange(STEPS * dense.BATCH).reshape(STEPS, dense.BATCH)
    sweep = make_sweep_step(make_train_step(student(), None, OPTIMIZER), teacher)
    states, objectives = stacked()
    states, means = make_epoch(sweep)(states, WEIGHTS(), objectives, arrays, order)
    chex.assert_trees_all_close(states.params, expected.params, rtol=1e-5, atol=1e-6)
    for name in means:
        np.testing.assert_allclose(means[name], np.mean([one[name] for one in metrics], axis=0), rtol=1e-5)
    assert means["loss"].shape == (3,)
    each = [weights_of(state) for state in unstack(states)]
    chex.assert_trees_all_equal(weights_of(states).params["head"][1], each[1].params["head"])


def test_stack_and_unstack_are_each_others_undoing():
    states = [state_of(setting) for setting in SETTINGS]
    chex.assert_trees_all_equal([readable(one) for one in unstack(stack(states))], [readable(one) for one in states])
    with pytest.raises(ValueError, match=r"tree must have one leading axis in all leaves, \[students, …\]; got \[\(\)"):
        unstack(states[0])
    with pytest.raises(ValueError, match=r"tree must have one leading axis in all leaves, .* got \[\(\)\]"):
        unstack({"w": jnp.float32(1.0)})


def different(**changes):
    terms = {
        "labels": (0.5, cross_entropy),
        "soft": (0.5, on_logits(soft_target_kl, temperature=4.0)),
        "relations": (0.3, on_feature(dense.spread, "embedding")),
    }
    return weighted_sum(**{name: term for name, term in (terms | changes).items() if term})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (different(soft=None), r"\.weights is \{'labels'.*\}, and not \{'labels'.*'soft': \*\}"),
        (different(relations=(0.3, on_feature(hint, "embedding"))), r"\.terms\['relations'\] is .*hint"),
        (
            different(relations=(0.3, on_feature(dense.spread, "stage1"))),
            r"\.terms\['relations'\] is .*student\.stage1",
        ),
        (different(soft=(0.5, on_logits(soft_target_kl))), r"\.terms\['soft'\]\.numbers is \{\}, and not"),
        (different(labels=(schedules.linear(1, 0, steps=9), cross_entropy)), r"\.weights\['labels'\] is .*Schedule"),
        (
            different(soft=(0.5, on_logits(soft_target_kl, temperature=jnp.ones(3)))),
            r"\.numbers\['temperature'\] has shape \(3,\) and dtype float32, and not shape \(\)",
        ),
    ],
)
def test_students_that_differ_in_more_than_numbers_are_refused(other, said):
    with pytest.raises(ValueError, match=rf"trees must differ in numbers only; number 1 differs .*{said}"):
        stack([objective(), other])


SOFT = weighted_sum(labels=(0.5, cross_entropy), soft=(0.5, on_logits(soft_target_kl, temperature=4.0)))


def plain_step():
    return make_train_step(student(), None, optimizer())


def students(count=3):
    return stack([dense.fresh_state(number) for number in range(count)]), stack([SOFT] * count)


def test_the_traced_program_holds_the_teacher_once_whatever_the_number_of_students():
    @jax.jit
    def the_teacher(params, model_state, inputs):
        return teacher(params, model_state, inputs, train=False)[0]

    def apply(params, model_state, inputs, *, train, rng=None):
        return the_teacher(params, model_state, inputs), model_state

    sweep = make_sweep_step(plain_step(), apply)
    for count in (1, 5):
        states, objectives = students(count)
        program = str(jax.make_jaxpr(sweep)(states, WEIGHTS(), objectives, batch()))
        assert program.count("name=the_teacher") == 1
        # Nor does it see copies of the batch: 16 rows of 5 logits.
        assert re.search(r"f32\[16,5\]( \w+:f32\[16,8\])? = p?jit\[", program)


def test_outputs_that_the_batch_brings_take_the_teachers_place():
    def never(params, model_state, inputs, *, train, rng=None):
        pytest.fail("the teacher was run")

    outputs, _ = teacher(*WEIGHTS(), batch()["inputs"], train=False)
    states, objectives = students()
    cached = make_sweep_step(plain_step(), never)(states, None, objectives, batch() | {"teacher": outputs})
    online = make_sweep_step(plain_step(), teacher)(states, WEIGHTS(), objectives, batch())
    chex.assert_trees_all_close(cached[0].params, online[0].params, rtol=1e-6, atol=1e-7)
    assert float(online[1]["soft"][0]) > 0.01


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="trees must hold one pytree a student, and one student at least; got none"):
        stack([])
    states, objectives = students()
    sweep = inspect.unwrap(make_sweep_step(plain_step(), teacher))
    for wrong, shape in ((stack([SOFT] * 2), r"\(2,\)"), (SOFT, r"\(\)")):
        with pytest.raises(
            ValueError, match=rf"objectives must be stacked for 3 students.*\['labels'\] has shape {shape}"
        ):
            sweep(states, WEIGHTS(), wrong, batch())
    with pytest.raises(ValueError, match=r"states must be stacked.*their step has shape \(\)"):
        sweep(unstack(states)[0], WEIGHTS(), objectives, batch())
    with pytest.raises(ValueError, match=r"states must be a TrainState, stacked as by stack.*; got a tuple"):
        sweep((states, weights_of(states)), WEIGHTS(), objectives, batch())
    of_rbg = states._replace(rng=jax.random.split(jax.random.key(0, impl="unsafe_rbg"), 3))
    with pytest.raises(ValueError, match=r"states must have keys of threefry2x32.*; got keys of unsafe_rbg"):
        sweep(of_rbg, WEIGHTS(), objectives, batch())
    with pytest.raises(ValueError, match=r"belong together, the function and its Weights; got no teacher\."):
        sweep(states, None, objectives, batch())
    with pytest.raises(ValueError, match="got no teacher_apply"):
        make_sweep_step(plain_step(), None)(states, WEIGHTS(), objectives, batch())

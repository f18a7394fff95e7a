"""Many students in one program: as if each had trained alone, one pass of the teacher, and nothing compiled twice."""

from functools import cache
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import batch, objective, student, teacher, teacher_weights

from kdjax import cross_entropy, init_state, make_train_step, on_feature, on_logits, schedules, weighted_sum
from kdjax.losses import rkd_angle, rkd_distance, soft_target_kl
from kdjax.training import jit_step
from kdjax.training.sweeps import WAYS, make_sweep_step, stack, unstack

OPTIMIZER = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9)
STEPS = 4


class Setting(NamedTuple):
    seed: int = 0
    temperature: float = 4.0
    labels: float = 0.5
    relations: float = 3.0
    learning_rate: float = 0.1


SETTINGS = (Setting(), Setting(seed=1), Setting(2, 1.5, 0.1, 1.0, 0.02))
WEIGHTS = cache(teacher_weights)


@cache
def initial_weights(seed):
    return jax.jit(student()[0])(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))


def state_of(setting):
    state = init_state(initial_weights(setting.seed), OPTIMIZER, jax.random.key(setting.seed))
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


class Compilations:
    """How many programs XLA has compiled, as JAX itself reports."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event, _seconds, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"


COMPILATIONS = Compilations()


@pytest.fixture(scope="module", params=WAYS)
def trained(request):
    """Three students of three settings after four steps, what they said, and what it took."""
    once, taught = Count(student()[1]), Count(teacher()[1])
    sweep = make_sweep_step(make_train_step(once, None, OPTIMIZER), taught, way=request.param)
    states, objectives = stacked()
    weights, compiled, metrics = WEIGHTS(), [], []
    unstack(states)  # compiles its own small program, once for all tests
    for number in range(STEPS):
        data, before = batch(seed=number), COMPILATIONS.count
        states, said = sweep(states, weights, objectives, data)
        compiled.append(COMPILATIONS.count - before)
        metrics.append(said)
    jax.block_until_ready(states)
    jax.effects_barrier()
    counts = {"traced": (once.traced, taught.traced), "teacher runs": taught.run, "compiled": compiled}
    return request.param, sweep, states, metrics, counts


@pytest.fixture(scope="module")
def alone():
    """Each setting by itself: the ordinary step, with the teacher in it."""
    step, results = jit_step(make_train_step(student()[1], teacher()[1], OPTIMIZER)), []
    for setting in SETTINGS:
        state, metrics = state_of(setting), []
        for number in range(STEPS):
            state, said = step(state, WEIGHTS(), objective_of(setting), batch(seed=number))
            metrics.append(said)
        results.append((readable(state), metrics))
    return results


def readable(state):
    return jax.device_get(state._replace(rng=jax.random.key_data(state.rng)))


def test_every_student_is_as_if_it_had_trained_alone(trained, alone):
    _, _, states, metrics, _ = trained
    for number, (one, (expected, said)) in enumerate(zip(unstack(states), alone, strict=True)):
        got = readable(one)
        # Momentum adds up gradients, of which a tenth at most reaches the parameters: it alone may differ by more.
        chex.assert_trees_all_close(got._replace(opt_state=()), expected._replace(opt_state=()), rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_close(got.opt_state, expected.opt_state, rtol=1e-5, atol=5e-5)
        mine = [jax.tree.map(lambda values, n=number: values[n], step) for step in metrics]
        chex.assert_trees_all_close(mine, said, rtol=1e-5, atol=1e-5)
    # Else the comparison would compare one student with itself.
    kernels = [np.asarray(state.params["logits"]["kernel"]) for state, _ in alone]
    assert min(np.abs(kernels[0] - other).max() for other in kernels[1:]) > 1e-2


def test_one_pass_of_the_teacher_and_one_compilation_serve_all_students(trained):
    way, _, _, _, counts = trained
    assert counts["teacher runs"] == STEPS
    assert counts["traced"] == (1, 1)
    # The other way's three programs: the teacher, the student, the metrics put together.
    assert counts["compiled"] == [{"vmap": 1, "one by one": 3}[way]] + [0] * (STEPS - 1)


def test_a_search_over_ten_values_of_everything_compiles_nothing(trained):
    _, sweep, _, _, counts = trained
    searched = [
        stacked([Setting(seed, 4.0 + number / 2, number / 10, number, 0.01 * number) for seed in range(3)])
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


def test_stack_and_unstack_are_each_others_undoing():
    states = [state_of(setting) for setting in SETTINGS]
    chex.assert_trees_all_equal([readable(one) for one in unstack(stack(states))], [readable(one) for one in states])
    with pytest.raises(ValueError, match=r"tree must have one leading axis in all leaves, \[students, …\]; got \[\(\)"):
        unstack(states[0])


def different(**changes):
    terms = {
        "labels": (0.5, cross_entropy),
        "soft": (0.5, on_logits(soft_target_kl, temperature=4.0)),
        "relations": (3.0, on_feature(rkd_distance, "embedding")),
    }
    return weighted_sum(**{name: term for name, term in (terms | changes).items() if term})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (different(soft=None), r"\.weights is \{'labels'.*\}, and not \{'labels'.*'soft': \*\}"),
        (different(relations=(3.0, on_feature(rkd_angle, "embedding"))), r"\.terms\['relations'\] is .*rkd_angle"),
        (
            different(relations=(3.0, on_feature(rkd_distance, "stage1"))),
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

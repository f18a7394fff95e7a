"""Both ways of a sweep, and the choice between them, on students that compile at once."""

import re
import time

import chex
import jax
import jax.numpy as jnp
import pytest
from networks import batch, optimizer

from kdjax import Outputs, Weights, cross_entropy, init_state, make_train_step, on_logits, weighted_sum
from kdjax.losses import soft_target_kl
from kdjax.training import sweeps
from kdjax.training.sweeps import WAYS, choose_way, make_sweep_step, stack, unstack


def linear(params, model_state, inputs, *, train, rng=None):
    """A network that compiles at once, where what it learns does not matter."""
    return Outputs(inputs.reshape(len(inputs), -1) @ params["kernel"], {}), model_state


LINEAR_TEACHER = Weights({"kernel": jnp.linspace(-1, 1, 640).reshape(64, 10)}, {})
SOFT = weighted_sum(labels=(0.5, cross_entropy), soft=(0.5, on_logits(soft_target_kl, temperature=4.0)))


def linear_students(count=3):
    kernels = [jnp.full((64, 10), 0.01 * number) for number in range(count)]
    states = [init_state(Weights({"kernel": kernel}, {}), optimizer(), jax.random.key(0)) for kernel in kernels]
    return stack(states), stack([SOFT] * count)


@pytest.mark.parametrize("way", WAYS)
def test_the_traced_program_holds_the_teacher_once_whatever_the_number_of_students(way):
    @jax.jit
    def the_teacher(params, inputs):
        return linear(params, {}, inputs, train=False)[0]

    def apply(params, model_state, inputs, *, train, rng=None):
        return the_teacher(params, inputs), model_state

    sweep = make_sweep_step(make_train_step(linear, None, optimizer()), apply, way=way)
    for count in (1, 5):
        states, objectives = linear_students(count)
        program = str(jax.make_jaxpr(sweep)(states, LINEAR_TEACHER, objectives, batch()))
        assert program.count("name=the_teacher") == 1
        # Nor does it see copies of the batch: 16 rows of 10 logits.
        assert re.search(r"f32\[16,10\] = p?jit\[", program)


@pytest.mark.parametrize("way", WAYS)
def test_outputs_that_the_batch_brings_take_the_teachers_place(way):
    def never(*_, **__):
        pytest.fail("the teacher was run")

    step = make_train_step(linear, None, optimizer())
    outputs, _ = linear(*LINEAR_TEACHER, batch()["inputs"], train=False)
    states, objectives = linear_students()
    cached = make_sweep_step(step, never, way=way)(states, None, objectives, batch() | {"teacher": outputs})
    states, objectives = linear_students()
    online = make_sweep_step(step, linear, way=way)(states, LINEAR_TEACHER, objectives, batch())
    mine, expected = ([one.params for one in unstack(states)] for states, _ in (cached, online))
    chex.assert_trees_all_close(mine, expected, rtol=1e-6, atol=1e-7)
    assert float(online[1]["soft"][0]) > 0.01


@pytest.mark.parametrize("faster", WAYS)
def test_the_choice_is_the_measured_one_and_takes_no_state_away(faster, monkeypatch):
    def pretended(step, teacher_apply, *, way):
        def sweep(states, teacher, objectives, data):
            time.sleep(0.0 if way == faster else 0.05)
            return jax.jit(lambda states: states, donate_argnums=0)(states), {}

        return sweep

    monkeypatch.setattr(sweeps, "make_sweep_step", pretended)
    states, objectives = linear_students()
    choice = choose_way(lambda *_: None, None, states, None, objectives, batch(), rounds=3)
    assert choice.way == faster
    assert choice.milliseconds[faster] == min(choice.milliseconds.values())
    assert max(choice.milliseconds.values()) >= 50
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(states))


def test_the_chosen_step_trains():
    states, objectives = linear_students()
    step = make_train_step(linear, None, optimizer())
    choice = choose_way(step, linear, states, LINEAR_TEACHER, objectives, batch(), rounds=1)
    after, metrics = choice.step(states, LINEAR_TEACHER, objectives, batch())
    assert [int(state.step) for state in unstack(after)] == [1, 1, 1]
    assert metrics["loss"].shape == (3,)
    assert choice.milliseconds.keys() == set(WAYS)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="trees must hold one pytree a student, and one student at least; got none"):
        stack([])
    step = make_train_step(linear, None, optimizer())
    with pytest.raises(ValueError, match=r"way must be one of vmap, one by one; got 'vmpa'. Did you mean 'vmap'"):
        make_sweep_step(step, linear, way="vmpa")
    states, objectives = linear_students()
    with pytest.raises(ValueError, match="rounds must be at least 1; got 0"):
        choose_way(step, None, states, None, objectives, batch(), rounds=0)
    one = stack([SOFT] * 2)
    for way in WAYS:
        sweep = make_sweep_step(step, linear, way=way)
        with pytest.raises(
            ValueError, match=r"objectives must be stacked for 3 students.*\['labels'\] has shape \(2,\)"
        ):
            sweep(states, LINEAR_TEACHER, one, batch())
        with pytest.raises(ValueError, match=r"objectives must be stacked for 3 students.*\['labels'\] has shape \(\)"):
            sweep(states, LINEAR_TEACHER, SOFT, batch())
        with pytest.raises(ValueError, match=r"states must be stacked.*their step has shape \(\)"):
            sweep(unstack(states)[0], LINEAR_TEACHER, objectives, batch())
        with pytest.raises(ValueError, match=r"belong together, the function and its Weights; got no teacher\."):
            sweep(states, None, objectives, batch())
        with pytest.raises(ValueError, match="got no teacher_apply"):
            make_sweep_step(step, None, way=way)(states, LINEAR_TEACHER, objectives, batch())

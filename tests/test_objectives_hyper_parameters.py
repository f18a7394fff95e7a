"""A loss's hyper-parameters: a leaf or static by the value given, one type for all numbers, errors as a term is made."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dense import total

from kdjax import Outputs, _checks, on_feature, on_logits, on_outputs, schedules, weighted_sum
from kdjax.losses import hierarchical_context, info_nce, jensen_shannon, overhaul, rkd_angle, soft_target_kl
from kdjax.objectives.schedules import Schedule

STUDENT, TEACHER = (Outputs(jax.random.normal(jax.random.key(seed), (6, 10)), {}) for seed in (1, 2))


def kd(student, teacher, *, temperature=4, at=None, distance=jnp.square, kind="mean", parts=(2, 1), scales=(1.0, 2.0)):
    """A user's loss, whose defaults tell nothing of what may be given."""
    del at, kind, parts, scales
    return distance((student - teacher) / temperature).sum(-1) * temperature**2


def positional(student, teacher, temperature=4.0):
    return jnp.square((student - teacher) / temperature).sum(-1)


def open_to_all(student, teacher, **settings):
    return positional(student, teacher, **settings)


def value(objective, step=0):
    return total(objective(STUDENT, TEACHER, {}, step)).mean()


def compile_value():
    """With a count of its own: JAX keeps one for each function."""
    return jax.jit(lambda objective, step=0: value(objective, step))


def goal(weight=1.0, loss=soft_target_kl, **hyper_parameters):
    return weighted_sum(own=(weight, on_logits(loss, **hyper_parameters)))


@pytest.mark.parametrize(
    ("given", "leaves"),
    [
        ({"temperature": 2.5}, [2.5]),
        ({"temperature": np.float32(2.5)}, [2.5]),
        ({"temperature": np.array(2.5)}, [2.5]),
        ({"temperature": jnp.float32(2.5)}, [2.5]),
        ({"temperature": 3}, []),
        ({"temperature": np.int64(3)}, []),
        ({"temperature": jnp.int32(3)}, []),
        ({"at": 0.5}, [0.5]),
        ({"at": 3}, []),
        ({"at": None}, []),
        ({"at": True}, []),
        ({"at": "centre"}, []),
        ({"at": jnp.float32}, []),
        ({"at": (1, 2)}, []),
        ({"at": [1, 2]}, []),
        ({"at": (1, 0.5)}, [1.0, 0.5]),
        ({"distance": jnp.abs}, []),
        ({"kind": "sum"}, []),
        ({"parts": (4, 2, 1)}, []),
        ({"scales": (3, 4)}, [3.0, 4.0]),
        ({"scales": 3}, [3.0]),
    ],
)
def test_the_value_given_decides_what_is_a_leaf(given, leaves):
    term = on_logits(kd, **given)
    got = jax.tree.leaves(term)
    assert got == leaves
    assert all(type(leaf) is float for leaf in got)
    assert [name for name, _ in term.settings] == ([] if leaves else list(given))
    hash(jax.tree.structure(term))  # jit needs it of all that is static


def test_arrays_and_schedules_are_leaves_whatever_the_default():
    for array in (jnp.ones(3), np.arange(3)):
        (leaf,) = jax.tree.leaves(on_logits(kd, at=array))
        assert leaf is array
    schedule = schedules.linear(1.0, 3.0, steps=10)
    assert jax.tree.leaves(on_logits(kd, distance=schedule)) == [1.0, 3.0, 10.0]
    assert isinstance(on_logits(kd, at=lambda step: step).numbers["at"], Schedule)


def test_a_losss_static_settings_reach_it_as_they_were_given():
    absolute = on_logits(kd, distance=jnp.abs)(STUDENT, TEACHER, {})
    np.testing.assert_array_equal(absolute, kd(STUDENT.logits, TEACHER.logits, distance=jnp.abs))
    assert dict(on_feature(rkd_angle, "f", block=np.int64(2)).settings) == {"block": 2}
    assert dict(on_feature(hierarchical_context, "f", levels=[4, 1]).settings) == {"levels": (4, 1)}


def test_floats_for_a_users_int_compile_once():
    compiled = compile_value()
    got = [float(compiled(goal(loss=kd, temperature=number))) for number in (1.5, 2.0, 4.5)]
    assert compiled._cache_size() == 1
    expected = [float(kd(STUDENT.logits, TEACHER.logits, temperature=number).mean()) for number in (1.5, 2.0, 4.5)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.linear(1.0, 3.0, steps=10),
        optax.linear_schedule(1.0, 3.0, 10),
        lambda step: jnp.linspace(1.0, 3.0, 11)[step],  # which takes whole steps only
    ],
)
def test_a_schedule_is_evaluated_before_the_loss_whatever_its_default(schedule):
    def loss(student, teacher, *, temperature=None):
        return positional(student, teacher, 1.0 if temperature is None else temperature)

    for each in (kd, loss):
        compiled = compile_value()
        for step, number in ((0, 1.0), (5, 2.0)):
            got = compiled(goal(loss=each, temperature=schedule), step)
            expected = each(STUDENT.logits, TEACHER.logits, temperature=number).mean()
            np.testing.assert_allclose(got, expected, rtol=1e-5)
        assert compiled._cache_size() == 1


SCALARS = (2.0, 3, np.float32(4.0), np.float64(5.0), np.int64(6), jnp.float32(7.0), jnp.bfloat16(8.0), jnp.asarray(9))


def test_scalars_of_any_library_compile_once():
    compiled = compile_value()
    got = [float(compiled(goal(number, temperature=number))) for number in SCALARS]
    assert compiled._cache_size() == 1
    numbers = [float(number) for number in SCALARS]
    expected = [n * soft_target_kl(STUDENT.logits, TEACHER.logits, temperature=n).mean() for n in numbers]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_scalars_of_any_library_in_a_schedule_compile_once():
    compiled = compile_value()
    for number in SCALARS:
        compiled(goal(schedules.linear(number, 1.0, steps=number)), 1)
        compiled(goal(schedules.linear(1.0, number, steps=10)), 1)
    assert compiled._cache_size() == 1
    compiled = compile_value()
    for number in SCALARS:
        compiled(goal(schedules.staircase(number, factor=number, every=number)), 1)
    assert compiled._cache_size() == 1


def test_a_double_keeps_its_digits():
    with jax.enable_x64(True):
        student, teacher = (Outputs(jnp.asarray(np.asarray(one.logits, np.float64)), {}) for one in (STUDENT, TEACHER))
        for number in (0.1, np.float64(0.1), jnp.float64(0.1)):
            objective = goal(number, loss=kd, temperature=number)
            assert jax.tree.leaves(objective) == [0.1, 0.1]
            got = jax.jit(lambda goal: total(goal(student, teacher, {}, 0)))(objective)
            assert got.dtype == jnp.float64
            expected = 0.1 * np.square((np.asarray(student.logits) - np.asarray(teacher.logits)) / 0.1).sum(-1) * 0.1**2
            np.testing.assert_allclose(got, expected, rtol=1e-14)


def test_a_traced_number_stays_traced():
    def traced(number):
        objective = goal(number, temperature=number)
        assert all(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(objective))
        return value(objective)

    number = jnp.float32(3.0)
    np.testing.assert_allclose(jax.jit(traced)(number), value(goal(3.0, temperature=3.0)), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(traced)(number[None])[0], value(goal(3.0, temperature=3.0)), rtol=1e-5)
    traced_schedule = jax.jit(lambda steps: value(goal(schedules.linear(1.0, 3.0, steps=steps)), 5))
    np.testing.assert_allclose(traced_schedule(10), value(goal(2.0)), rtol=1e-5)


def test_a_loss_of_open_keywords_takes_any_by_the_value_given():
    """What it does not know it refuses itself, when it is called: its signature cannot be read for a mistake."""
    assert jax.tree.leaves(on_logits(open_to_all, temperature=2.0)) == [2.0]
    assert jax.tree.leaves(on_logits(open_to_all, temperature=2)) == []
    expected = positional(STUDENT.logits, TEACHER.logits, 2.0)
    np.testing.assert_array_equal(on_logits(open_to_all, temperature=2.0)(STUDENT, TEACHER, {}), expected)
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        on_logits(open_to_all, temprature=2.0)(STUDENT, TEACHER, {})
    placed = on_logits(open_to_all, temperature="batch.t")
    np.testing.assert_array_equal(placed(STUDENT, TEACHER, {"t": 2.0}), expected)
    with pytest.raises(ValueError, match="student of open_to_all must be keyword-only"):
        on_logits(open_to_all, student=2.0)


def test_a_partial_makes_an_argument_keyword_only():
    term = on_logits(functools.partial(positional, temperature=4.0), temperature=2)
    assert jax.tree.leaves(term) == [2.0]
    np.testing.assert_array_equal(term(STUDENT, TEACHER, {}), positional(STUDENT.logits, TEACHER.logits, 2.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: on_logits(positional, temperature=2.0),
            r"temperature of positional must be keyword-only, after \* in its signature, .*"
            r"got positional\(student, teacher, temperature\)\. functools\.partial\(loss, temperature=\.\.\.\)",
        ),
        (
            lambda: on_logits(positional, tau=2.0),
            "A hyper-parameter of positional must be a keyword-only argument, and it has none; got 'tau'",
        ),
        (lambda: on_logits(kd, temprature=2.0), "must be one of temperature, .*Did you mean 'temperature'"),
        (lambda: on_logits(kd, at=(0.5, "a")), r"at\[1\] must be a number or a function of the step; got 'a'"),
        (lambda: on_logits(kd, scales=("a", 1.0)), r"scales\[0\] must be a number or a function of the step; got 'a'"),
        (lambda: on_logits(kd, at=math.nan), "at must be a finite number; got nan"),
        (lambda: on_logits(kd, at=jnp.array([1.0, jnp.inf])), "at must be a finite number"),
        (lambda: on_logits(soft_target_kl, temperature=jnp.float32(0.0)), r"greater than 0; got 0\.0\.$"),
        (lambda: on_logits(soft_target_kl, temperature=jnp.array([4.0, 0.0, 2.0])), "temperature must be a finite"),
        (lambda: on_logits(info_nce, temperature=jnp.ones(3)), r"temperature must be one number; got shape \(3,\)"),
        (
            lambda: on_outputs(jensen_shannon, "student.logits", "teacher.logits", temperature="student.t", beta=7.0),
            r"beta must lie between 0\.0 and 1\.0; got 7\.0",
        ),
        (
            lambda: on_logits(soft_target_kl, temperature=optax.constant_schedule(-1.0)),
            "temperature must be a finite number greater than 0; got -1.0",
        ),
    ],
)
def test_what_is_wrong_is_said_when_the_term_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_a_loss_says_of_arrays_is_not_said_of_its_numbers():
    """It is asked on made-up arrays: only an error of a number's range counts, whatever another's message begins with."""

    def picky(student, teacher, *, margin):
        if student.shape != (6, 10):
            raise ValueError("margin must fit arrays of 6 by 10")
        return positional(student, teacher, margin)

    np.testing.assert_array_equal(
        on_logits(picky, margin=2.0)(STUDENT, TEACHER, {}), positional(STUDENT.logits, TEACHER.logits, 2.0)
    )


def test_an_array_is_asked_at_its_own_size():
    seen = []

    def loss(student, teacher, *, margin):
        seen.append(student.shape)
        return positional(student, teacher, margin[None])

    on_logits(loss, margin=jnp.ones(5))
    assert seen == [(5, 5)]
    on_feature(overhaul, "f", margin=jnp.full(5, -0.5))


@pytest.mark.parametrize("shape", [(), (2,), (3,)])
def test_a_number_is_checked_beside_an_array_that_is_taken_by_name(shape):
    """The array is one number, one an example or one a channel; it has no values, so none of its own is out of range."""

    def loss(student, teacher, *, power, scale):
        if scale.shape != shape:
            raise TypeError("another shape")
        _checks.positive("scale", scale.sum())
        _checks.positive("power", power)
        return jnp.square(student - teacher).sum(-1)

    with pytest.raises(ValueError, match=r"power must be a finite number greater than 0; got -1\.0\.$"):
        on_logits(loss, power=-1.0, scale="student.scale")


def test_a_loss_that_accepts_its_numbers_is_traced_once():
    calls = []

    def loss(student, teacher, *, temperature=4.0):
        calls.append(temperature)
        return positional(student, teacher, temperature)

    on_logits(loss, temperature=2.0)
    assert calls == [2.0]
    on_logits(loss, temperature=schedules.linear(1.0, 3.0, steps=10))
    assert calls[1:] == [1.0, 3.0]

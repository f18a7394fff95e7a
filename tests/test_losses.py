"""The numeric law: what must hold of every loss, asked of every row of cases.py."""

import functools
import inspect
import json
import re
from pathlib import Path

import case as parts
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from absl.testing import parameterized
from cases import CASES
from jax.sharding import AxisType, PartitionSpec
from jax.test_util import check_grads

from kdjax import losses
from kdjax.losses import _math, _relations

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_CASES = {case["case"]: case for case in json.loads((GOLDEN / "losses.json").read_text())}
BY_NAME = {case.name: case for case in CASES}

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def made(case, dtype=np.float32, seed=0, batch=6):
    """The row's inputs; labels and indices keep their type."""
    return converted(case.make(np.random.default_rng(seed), batch), dtype)


def converted(arrays, dtype):
    return tuple(jnp.asarray(a, dtype if np.issubdtype(a.dtype, np.floating) else None) for a in arrays)


def floating(arrays):
    return tuple(position for position, a in enumerate(arrays) if jnp.issubdtype(a.dtype, jnp.floating))


def bound(case, **keywords):
    return functools.partial(case.function, **{**case.keywords, **keywords})


def traceable(case, keywords):
    """The hyper-parameters that may be traced, the defaults included, and the others: the default's type tells which."""
    parameters = inspect.signature(inspect.unwrap(case.function)).parameters.values()
    defaults = {p.name: p.default for p in parameters if isinstance(p.default, float)}
    numbers = {
        name: np.asarray(value)
        for name, value in {**defaults, **keywords}.items()
        if name in defaults or isinstance(value, np.ndarray)
    }
    return numbers, {name: value for name, value in keywords.items() if name not in numbers}


def jitted(name):
    """The per-example values alone, from the program that all tests share: most of the tests' time is compilation."""
    return lambda *arrays: value_and_gradients(name, floating(arrays))(*arrays)[0][1]


@functools.cache
def value_and_gradients(name, argnums):
    """Per-example values, and the gradients of their mean."""

    def mean(*arrays):
        values = bound(BY_NAME[name])(*arrays)
        return values.mean(), values

    return jax.jit(jax.value_and_grad(mean, argnums=argnums, has_aux=True))


def close(actual, wanted, relative, absolute=0.0):
    np.testing.assert_allclose(np.asarray(actual, np.float64), np.asarray(wanted, np.float64), relative, absolute)


# Is the table whole?


def test_every_export_has_one_row_and_a_reference():
    here = [*(case.name for case in CASES), *parts.INGREDIENTS]
    assert sorted([*here, *parts.CERTIFIED_ELSEWHERE]) == sorted(losses.__all__)
    assert [name for name in here if not callable(getattr(references, name, None))] == []
    for name, file in parts.CERTIFIED_ELSEWHERE.items():
        assert f"losses.{name}" in (Path(__file__).parent / file).read_text()


def test_every_golden_case_of_an_export_is_asked_for():
    wanted = {name for name, golden in GOLDEN_CASES.items() if golden["function"] in BY_NAME}
    assert sorted(name for case in CASES for name in case.golden) == sorted(wanted)
    assert all(GOLDEN_CASES[name]["function"] == case.name for case in CASES for name in case.golden)


@each_case
def test_docstring_and_signature(case):
    text = inspect.getdoc(case.function)
    headings = ["Args:", "Returns:", "Raises:", "Example:", "Note:", "Reference:"]
    assert re.findall(r"^(\w+:)$", text, re.MULTILINE) == headings
    assert ">>>" in text
    assert re.search(r"Reference:.*https://", text, re.DOTALL)
    for parameter in inspect.signature(inspect.unwrap(case.function)).parameters.values():
        if parameter.name in case.keywords or parameter.default is not parameter.empty:
            assert parameter.kind is parameter.KEYWORD_ONLY
            # The type of the default tells the floors above what may be traced: a float may; whole numbers and None may not.
            plain = (float, int, bool, type(None), tuple)
            assert parameter.default is parameter.empty or type(parameter.default) in plain


# Is the value right?


@each_case
@pytest.mark.parametrize("precision", [np.float64, np.float32], ids=lambda dtype: dtype.__name__)
def test_agrees_with_the_slow_reference(case, precision):
    relative = 1e-10 if precision is np.float64 else 2e-4
    reference = getattr(references, case.name)
    compiled = functools.cache(lambda **static: jax.jit(functools.partial(case.function, **static)))
    for seed, keywords in enumerate([case.keywords, *case.other_keywords]):
        arrays = case.make(np.random.default_rng(seed), 6)
        numbers, static = traceable(case, keywords)
        with jax.enable_x64(precision is np.float64):
            values = compiled(**static)(*converted(arrays, precision), **numbers)
        assert values.shape == (6,)
        assert values.dtype == precision
        close(values, reference(*arrays, **keywords), relative, relative * 1e-2)


@pytest.mark.parametrize("name", [name for case in CASES for name in case.golden])
@pytest.mark.parametrize("precision", [np.float64, np.float32], ids=lambda dtype: dtype.__name__)
def test_agrees_with_golden_value_and_gradient(name, precision):
    golden = GOLDEN_CASES[name]
    relative = 1e-6 if precision is np.float64 else 1e-4
    with np.load(GOLDEN / "losses.npz") as arrays, jax.enable_x64(precision is np.float64):
        keywords = {
            key: arrays[golden["arrays"][value["array"]]] if isinstance(value, dict) else value
            for key, value in golden["keywords"].items()
        }
        inputs = converted([arrays[golden["arrays"][key]] for key in golden["args"]], precision)
        function = getattr(losses, golden["function"])
        value, gradient = jax.jit(jax.value_and_grad(lambda *args: function(*args, **keywords).mean()))(*inputs)
        wanted = arrays[golden["arrays"]["grad_student"]]
    close(value, golden["value"], relative)
    close(gradient, wanted, relative, relative * np.abs(wanted).max())


@each_case
def test_gradient_agrees_with_finite_differences(case):
    """Of every array and every traced hyper-parameter at once. JAX derives backward mode from forward mode: one will do."""
    numbers, static = traceable(case, case.keywords)
    with jax.enable_x64(True):
        arrays = made(case, np.float64, seed=3)
        which = floating(arrays)

        def of_floats(moving, numbers):
            values = list(arrays)
            for position, value in zip(which, moving, strict=True):
                values[position] = value
            return case.function(*values, **numbers, **static)

        moving = [arrays[i] for i in which]
        check_grads(jax.jit(of_floats), [moving, numbers], order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@each_case
def test_zero_at_equality_and_never_below_its_lowest(case):
    arrays = case.make(np.random.default_rng(4), 6)
    assert jitted(case.name)(*converted(arrays, np.float32)).min() > case.lowest + 1e-5
    if case.zero_at_equality:
        rounding = 1e-7 if case.agree is None else 2e-6
        close(jitted(case.name)(*converted(case.equal(arrays), np.float32)), np.zeros(6), 0, rounding)


@pytest.mark.parametrize(
    ("case", "change"),
    [(case, change) for case in CASES for change in case.invariances],
    ids=lambda value: getattr(value, "name", None) or value.__name__,
)
def test_invariance(case, change):
    arrays = case.make(np.random.default_rng(5), 6)
    changed = change(arrays)
    assert any(not np.array_equal(before, after) for before, after in zip(arrays, changed, strict=True))
    before, after = (jitted(case.name)(*converted(values, np.float32)) for values in (arrays, changed))
    close(after, before, 2e-4, 1e-5 * float(before.max()))


# Is it finite everywhere, and in every dtype?


@each_case
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)
def test_finite_value_and_gradient_at_bad_points(case, dtype):
    arrays = case.make(np.random.default_rng(6), 6)
    for point, hard in case.hard_inputs(
        arrays, largest=case.largest_in_float16 if dtype is jnp.float16 else 1e4
    ).items():
        inputs = converted(hard, dtype)
        (_, values), gradients = value_and_gradients(case.name, floating(inputs))(*inputs)
        assert values.dtype == jnp.float32
        assert np.isfinite(values).all(), f"value at: {point}"
        # Half-precision input is computed in float32: rounding it before, by hand, changes nothing.
        widened = converted([np.asarray(a, np.float32) if a.dtype == dtype else a for a in inputs], np.float32)
        np.testing.assert_allclose(values, jitted(case.name)(*widened), 1e-4, 1e-5, err_msg=f"value at: {point}")
        for gradient in gradients:
            assert gradient.dtype == dtype
            assert np.isfinite(np.asarray(gradient, np.float32)).all(), f"gradient at: {point}"


@each_case
def test_nan_is_not_hidden(case):
    arrays = case.make(np.random.default_rng(7), 6)
    for position in floating(arrays):
        broken = [a.copy() for a in arrays]
        broken[position][2] = np.nan
        assert np.isnan(jitted(case.name)(*converted(broken, np.float32))[2])


# Is it one number per example, under every transformation?


class Variants(chex.TestCase):
    @chex.variants(without_jit=True, with_device=True)
    @parameterized.named_parameters(*((case.name, case) for case in CASES))
    def test_variant(self, case):
        arrays = made(case, seed=8)
        close(self.variant(bound(case))(*arrays), jitted(case.name)(*arrays), 1e-4, 1e-6)


@each_case
def test_maps_over_batches_as_a_loop_does(case):
    batches = [made(case, seed=seed) for seed in range(4)]
    wanted = np.stack([jitted(case.name)(*arrays) for arrays in batches])
    stacked = tuple(jnp.stack(arrays) for arrays in zip(*batches, strict=True))
    function = bound(case)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    data = PartitionSpec("data")
    mapped = {
        "vmap": jax.jit(jax.vmap(function)),
        "scan": jax.jit(lambda *arrays: jax.lax.scan(lambda carry, one: (carry, function(*one)), 0, arrays)[1]),
        "pmap": jax.pmap(function),
        "shard_map": jax.jit(
            jax.shard_map(
                lambda *arrays: function(*(a[0] for a in arrays))[None], mesh=mesh, in_specs=data, out_specs=data
            )
        ),
    }
    for values in (transformed(*stacked) for transformed in mapped.values()):
        close(values, wanted, 1e-4, 1e-6)


@each_case
def test_order_of_the_batch_is_only_an_order(case):
    order = np.arange(6)[::-1] if case.ordered else np.random.default_rng(9).permutation(6)
    arrays = made(case, seed=9)
    close(jitted(case.name)(*case.taken(arrays, order)), jitted(case.name)(*arrays)[order], 1e-4, 1e-6)


@each_case
def test_couples_the_batch_only_where_the_row_says_so(case):
    arrays = made(case, seed=10)
    jacobian = jax.jit(jax.jacrev(lambda student: bound(case)(student, *arrays[1:])))(arrays[0])
    influence = np.abs(np.asarray(jacobian)).reshape(6, 6, -1).max(axis=2)  # of example j on the number of example i
    assert (np.diagonal(influence) > 0).all()
    coupled = abs(np.subtract.outer(range(6), range(6))) == 1 if case.ordered else ~np.eye(6, dtype=bool)
    assert (influence[coupled] > 0).all() == case.couples_batch
    if not case.couples_batch:
        np.testing.assert_array_equal(influence, np.diag(np.diagonal(influence)))
        alone = np.concatenate([jitted(case.name)(*case.taken(arrays, slice(i, i + 1))) for i in range(6)])
        close(alone, jitted(case.name)(*arrays), 1e-4, 1e-6)


# Does it say what is wrong?


@pytest.mark.parametrize(
    ("case", "bad"),
    [
        pytest.param(case, bad, id=f"{case.name}-{number}")
        for case in CASES
        for number, bad in enumerate(case.bad_calls)
    ],
)
def test_bad_call_is_a_named_error(case, bad):
    arrays = bad.change(case.make(np.random.default_rng(11), 6))
    inputs = converted(arrays, np.float32)
    # Without the tests' own shape checks, which would speak first: this is what a user meets.
    function = functools.partial(inspect.unwrap(case.function), **{**case.keywords, **bad.keywords})
    for call in (function, jax.jit(function)):
        with pytest.raises(ValueError, match=bad.words):
            call(*inputs)


@each_case
def test_shapes_in_the_signature_are_checked_here(case):
    arrays = made(case)
    with pytest.raises(TypeError, match=r"student|teacher"):
        case.function(arrays[0], arrays[1][:5], *arrays[2:], **case.keywords)


# What is special


def test_classes_at_minus_infinity_count_nothing():
    student, teacher = made(BY_NAME["soft_target_kl"])
    masked = (jnp.pad(a, ((0, 0), (0, 2)), constant_values=-jnp.inf) for a in (student, teacher))
    (_, values), gradients = value_and_gradients("soft_target_kl", (0, 1))(*masked)
    close(values, jitted("soft_target_kl")(student, teacher), 1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
def test_a_far_away_cloud_keeps_its_digits(name):
    student, teacher = parts.embeddings(np.random.default_rng(0), 6)
    student, teacher = (a.astype(np.float32) + np.float32(1000) for a in (student, teacher))
    wanted = getattr(references, name)(student.astype(np.float64), teacher.astype(np.float64))
    close(jitted(name)(student, teacher), wanted, 1e-4)


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
def test_twins_in_a_large_batch_have_distance_zero(name):
    """Two equal rows of a Gram matrix are not always equal to the last bit: rounding noise must not pass for a distance."""
    student, teacher = np.random.default_rng(0).standard_normal((2, 40, 97)).astype(np.float32)
    student[20:] = student[:20]
    (_, values), (gradient,) = value_and_gradients(name, (0,))(jnp.asarray(student), jnp.asarray(teacher))
    close(values, getattr(references, name)(student.astype(np.float64), teacher), 1e-4)
    with jax.enable_x64(True):
        exact = jax.grad(lambda s: bound(BY_NAME[name])(s, jnp.asarray(teacher, np.float64)).mean())(
            jnp.asarray(student, np.float64)
        )
    close(gradient, exact, 1e-3, 1e-4 * np.abs(exact).max())


def test_rounding_noise_in_a_gram_matrix_is_no_distance():
    off_by_one_bit = jnp.array([[1.0, 1.0 - 2**-23, 0.0], [1.0 - 2**-23, 1.0, 0.0], [0.0, 0.0, 1.0]])
    distances, pull_back = jax.vjp(_math.squared_distances, off_by_one_bit)
    np.testing.assert_array_equal(distances, [[0, 0, 2], [0, 0, 2], [2, 2, 0]])
    of_the_pair = jnp.zeros((3, 3)).at[0, 1].set(1.0)
    np.testing.assert_array_equal(pull_back(of_the_pair)[0], np.zeros((3, 3)))


def test_cosines_between_near_twins_do_not_pass_one():
    rows, steps = np.random.default_rng(0).standard_normal((2, 6, 97)).astype(np.float32)
    gram = _math.gram(_math.centred(jnp.asarray(np.concatenate([rows, rows + 3e-3 * steps]))))
    cosines = jax.vmap(lambda *anchor: _relations._cosines(gram, anchor))(*_relations._anchors(gram))
    assert np.abs(cosines).max() == 1


def test_opposite_directions_have_a_similarity_of_zero_and_not_below():
    """Rounding carries the cosine of x and −x below −1, and a logarithm of a negative number is NaN."""
    student = np.random.default_rng(0).standard_normal((1000, 1, 33)).astype(np.float32)
    pairs = jnp.asarray(np.concatenate([student, -student], axis=1))
    values, gradient = jax.jit(jax.vmap(jax.value_and_grad(lambda s, t: losses.pkt(s, t).mean()), in_axes=(0, None)))(
        pairs, jnp.eye(2)
    )
    assert np.isfinite(values).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("block", [1, 3, 5, 7, 8])
def test_angle_in_blocks_is_the_same(block):
    arrays = made(BY_NAME["rkd_angle"], batch=7)
    whole, blocked = (
        jax.jit(jax.value_and_grad(lambda s, t, b=b: losses.rkd_angle(s, t, block=b).mean()))(*arrays)
        for b in (None, block)
    )
    close(blocked[0], whole[0], 1e-6)
    close(blocked[1], whole[1], 1e-4, 1e-7)


def test_angle_in_blocks_bounds_memory_backward_too():
    batch, block = 512, 8
    features = jax.ShapeDtypeStruct((batch, 64), jnp.float32)
    step = jax.jit(jax.value_and_grad(lambda s, t: losses.rkd_angle(s, t, block=block).mean()))
    needed = step.lower(features, features).compile().memory_analysis().temp_size_in_bytes
    block_of_cosines = 4 * block * batch**2
    assert needed < 8 * block_of_cosines, f"{needed / 1e6:.0f} MB"

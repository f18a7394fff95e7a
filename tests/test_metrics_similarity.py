"""How alike features are, against the papers' formulas by their matrices in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.metrics import cka


def slow_cka(first, second):
    """Kornblith et al., eq. 3 by its matrices."""
    centring = np.eye(len(first)) - 1 / len(first)

    def hsic(one, other):
        return np.trace(one @ centring @ other @ centring)

    return hsic(first, second) / np.sqrt(hsic(first, first) * hsic(second, second))


def features(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_cka_is_the_papers():
    first, second = features(0, 40, 6), features(1, 40, 2, 5)
    second[:, 0, 0] += 2.0 * first[:, 0]
    flat = second.reshape(40, -1)
    assert cka(first, second) == pytest.approx(slow_cka(first @ first.T, flat @ flat.T), abs=1e-5)
    assert cka(first, second, kernel="rbf") == pytest.approx(slow_cka(rbf(first), rbf(flat)), abs=1e-4)


def rbf(rows):
    squares = ((rows[:, None].astype(np.float64) - rows[None]) ** 2).sum(axis=-1)
    return np.exp(-squares / (2 * 0.25 * np.median(squares[np.triu_indices(len(rows), 1)])))


@pytest.mark.parametrize("spread", [1e-3, 1e-5])
def test_cka_tells_distances_within_clusters_far_from_each_other(spread):
    """They are small differences of squares that are not."""
    side = np.where(np.arange(60) < 12, 1.0, -1.0)[:, None]
    pair = [(side * features(seed, 1, 32) + spread * features(seed + 9, 60, 32)).astype(np.float32) for seed in (0, 1)]
    found = cka(*pair, kernel="rbf")
    assert found == pytest.approx(slow_cka(rbf(pair[0]), rbf(pair[1])), abs=1e-4)
    assert 0.5 < found < 0.9


def test_cka_without_a_value_is_nan():
    """No median distance; or, without bias, examples that are all equally far apart: their kernels are rounding."""
    first, codes = features(0, 20, 6), np.linalg.qr(features(1, 20, 20))[0].astype(np.float32)
    twice = np.concatenate([np.repeat(first[:1], 15, axis=0), first[:5]])
    turned = (3 * twice @ np.linalg.qr(features(2, 6, 6))[0] + 1.0).astype(np.float32)
    assert np.isnan([cka(one, other, kernel="rbf") for one, other in ((twice, turned), (turned, first))]).all()
    assert cka(twice, turned) == pytest.approx(1.0, abs=1e-5)
    for one in (np.eye(20, dtype=np.float32), codes, np.ones((20, 3), np.float32)):
        assert np.isnan([cka(one, other, debiased=True) for other in (one, first)]).all()
    few = [np.float32(np.random.default_rng(seed).integers(0, 2, size=(5, 2))) for seed in range(40)]
    values = [cka(one, one, debiased=True) for one in few]
    assert {round(value, 6) for value in values if not np.isnan(value)} == {1.0}
    assert max(value for value in values if not np.isnan(value)) <= 1.0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_one_large_example_of_half_precision_is_no_rounding(dtype):
    first, second = (jnp.asarray(features(seed, 500, 64), dtype).at[7].multiply(300) for seed in (0, 1))
    wanted = cka(first.astype(jnp.float32), second.astype(jnp.float32), debiased=True)
    assert cka(first, second, debiased=True) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("debiased", [False, True])
def test_cka_knows_no_rotation_scale_or_shift(kernel, debiased):
    first = features(0, 30, 6)
    turned = first @ np.linalg.qr(features(3, 6, 6))[0]
    for scale in (1e-12, 3.0, 1e12):
        assert cka(first, scale * (turned + 1.0), kernel=kernel, debiased=debiased) == pytest.approx(1.0, abs=1e-3)


def test_without_bias_features_of_nothing_in_common_have_none():
    """12 examples of 200 dims: the plain form takes them for alike."""
    pairs = [(features(2 * n, 12, 200), features(2 * n + 1, 12, 200)) for n in range(40)]
    assert np.mean([cka(*pair) for pair in pairs]) > 0.8
    values = [cka(*pair, debiased=True) for pair in pairs]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values)) < 0.1


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("first and second must have 4 examples or more; got 3", {"debiased": True}),
        ("kernel must be one of linear, rbf; got 'cosine'", {"kernel": "cosine"}),
        ("width must be a finite number greater than 0; got 0.0", {"width": 0.0}),
        ("first and second must have the same batch size", {"second": features(0, 4, 2)}),
    ],
)
def test_bad_input_of_cka_is_named(words, settings):
    arrays = {"first": jnp.asarray(features(0, 3, 2)), "second": jnp.asarray(features(1, 3, 2))}
    arguments = arrays | {k: jnp.asarray(v) if k == "second" else v for k, v in settings.items()}
    with pytest.raises(ValueError, match=words):
        cka.__wrapped__(**arguments)

"""Principal components in one pass, against scikit-learn's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from connected import network, student, teacher
from sklearn.decomposition import PCA

from kdjax import Outputs, Weights, connectors, init_state, make_train_step, on_feature, weighted_sum
from kdjax.losses import hint
from kdjax.networks import (
    Projection,
    fit_pca,
    project,
    projection_of,
    with_features,
)

INPUTS = np.random.default_rng(0).normal(size=(45, 4, 4, 2)).astype(np.float32)


def plain(params, model_state, inputs, *, train, rng=None):
    return Outputs(inputs.reshape(len(inputs), -1)[:, :2], {"f": inputs}), model_state


NOTHING = Weights({}, {})


def in_batches(inputs, size=10, filling=0.0):
    """As `evaluation_indices` cuts them: the last one is filled up, and masked."""
    for start in range(0, len(inputs), size):
        rows = inputs[start : start + size]
        mask = np.arange(size) < len(rows)
        filled = np.full((size - len(rows), *rows.shape[1:]), filling, np.float32)
        yield {"inputs": np.concatenate([rows, filled]), "mask": mask.astype(np.float32)}


def tall(seed, positions=(45, 4, 4), channels=9, offset=0.0):
    """Channels that hang together, of spreads from 1 down to 1/30."""
    random = np.random.default_rng(seed)
    mixing = np.linalg.qr(random.normal(size=(channels, channels)))[0] * 0.65 ** np.arange(channels)[:, None]
    return np.float32(random.normal(size=(*positions, channels)) @ mixing + offset)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("share", [0.7, 0.9, 0.99])
def test_the_projection_is_scikit_learns(share, offset):
    """Components to 3e-5, signs aligned; also where the mean is a thousand times the spread."""
    data = tall(1, offset=offset)
    rows = data.reshape(-1, 9).astype(np.float64)
    expected = PCA(n_components=share, svd_solver="full").fit(rows)
    got = fit_pca(plain, NOTHING, in_batches(data, filling=np.nan), "f", share=share)
    assert got.components.shape == expected.components_.shape
    assert 1 < len(got.components) < 9
    signs = np.sign(np.sum(got.components * expected.components_, axis=1, keepdims=True))
    np.testing.assert_allclose(got.mean, expected.mean_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.components * signs, expected.components_, atol=3e-5)
    np.testing.assert_allclose(got.explained_share, expected.explained_variance_ratio_, atol=1e-6)
    np.testing.assert_allclose(
        np.asarray(project(got, data)).reshape(-1, len(signs)) * signs[:, 0],
        expected.transform(rows),
        atol=3e-5 if offset == 0 else 3e-4,  # the mean itself, in float32, is rounded by up to 6e-5
    )


def test_how_the_data_are_cut_does_not_matter():
    data = tall(2)
    fits = [fit_pca(plain, NOTHING, in_batches(data, size), "f") for size in (7, 45)]
    fits.append(fit_pca(plain, NOTHING, [{"inputs": data[:1]}, {"inputs": data[1:]}], "f"))
    for fit in fits[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), fits[0], fit)
    largest = np.abs(fits[0].components).argmax(axis=1)
    assert (np.asarray(fits[0].components)[np.arange(len(largest)), largest] > 0).all()


def test_a_vector_a_sequence_and_all_of_the_variance():
    for shape in ((45, 6), (15, 3, 6)):
        data = tall(3, shape[:-1], 6)
        got = fit_pca(plain, NOTHING, in_batches(data), "f", share=1.0)
        assert got.components.shape == (6, 6)
        np.testing.assert_allclose(got.components @ got.components.T, np.eye(6), atol=1e-6)
        assert project(got, data).shape == shape


def test_what_cannot_be_fitted_is_a_named_error():
    data = tall(4)
    for arguments, words in (
        ({"share": 0.0}, "share must be above 0 and at most 1; got 0.0"),
        ({"share": 90}, "share must be above 0 and at most 1; got 90"),
        ({"feature": "g"}, r"The network has no feature 'g'; it has \['f'\]"),
        *(
            (
                {"batches": [{"inputs": data[:5], "mask": np.ones(shape)}]},
                r"mask\"\] must have shape \(5,\), .*got shape \(",
            )
            for shape in ((1,), (2,), (5, 4))
        ),
        ({"batches": []}, "batches must hold two positions at least; got 0"),
        ({"batches": [{"inputs": np.ones((3, 2, 2, 4), np.float32)}]}, "'f' must vary; it is the same at all 12"),
    ):
        given = {"batches": in_batches(data), "feature": "f"} | arguments
        with pytest.raises(ValueError, match=words):
            fit_pca(plain, NOTHING, **given)
    data[3, 1, 1, 0] = np.inf
    with pytest.raises(FloatingPointError, match="The network's feature 'f' is not all finite"):
        fit_pca(plain, NOTHING, in_batches(data), "f")
    with pytest.raises(ValueError, match=r"projection.mean must have shape \(3,\), one number per channel of feature"):
        project(Projection(jnp.zeros(2), jnp.eye(2), jnp.ones(2)), jnp.zeros((1, 3)))


def test_a_student_learns_the_teachers_components_and_the_projection_stays():
    pca = fit_pca(network, teacher(), in_batches(INPUTS), "stage2")
    assert 1 <= len(pca.components) < 8
    taught = with_features(network, stage2_pca=projection_of("stage2", pca))
    seen = jax.jit(partial(taught, train=False))(*teacher(), INPUTS)[0].features
    np.testing.assert_allclose(seen["stage2_pca"], project(pca, seen["stage2"]), atol=1e-5)
    beside = {"pca": connectors.regressor("stage2", "stage2_pca")}
    make = partial(connectors.init_beside, beside, student_apply=network, teacher_apply=taught, inputs=INPUTS)
    weights = jax.jit(lambda rng: make(rng, student=student(), teacher=teacher()))(jax.random.key(1))
    assert weights.params["connectors"]["pca"]["layer1"]["kernel"].shape == (4, len(pca.components))
    step = jax.jit(make_train_step(network, taught, optax.adam(0.01), connectors=beside))
    state, losses = init_state(weights, optax.adam(0.01), jax.random.key(2)), []
    for _ in range(40):
        state, metrics = step(
            state, teacher(), weighted_sum(pca=(1.0, on_feature(hint, "pca"))), {"inputs": INPUTS[:8]}
        )
        losses.append(float(metrics["pca"]))
    assert losses[-1] < 0.7 * losses[0]

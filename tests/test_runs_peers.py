"""Online distillation in a comparison: student and peer learn together, stopped and resumed to the bit."""

import io
import json
import re
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from comparisons import DATA, LABELS, NETWORKS, RECIPES, SOFT, WIDTHS, lines, numbers, run

from kdjax import init_state
from kdjax.batches import epoch_indices
from kdjax.data import unit_range
from kdjax.runs import StoppedError, remeasure
from kdjax.runs.report import _curves, _numbers
from kdjax.training import jit_step, make_mutual_step, weights_of

PEER = replace(RECIPES["teacher"], objective=SOFT)
ONLINE = replace(RECIPES["distilled"], peer=PEER)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "online"
    run(out, distilled=ONLINE)
    return out


def test_it_is_mutual_learning_from_the_starts_of_student_and_teacher(finished):
    optimizer, key = optax.sgd(0.3, momentum=0.9), jax.random.key(0)
    arrays = {"inputs": unit_range(DATA[0].inputs), "labels": jax.numpy.asarray(DATA[0].labels)}
    states = tuple(
        init_state(NETWORKS[width][0](jax.random.fold_in(key, number), arrays["inputs"][:1]), optimizer, key)
        for width, number in ((WIDTHS["distilled"], 1), (WIDTHS["teacher"], 0))
    )
    step = jit_step(make_mutual_step([NETWORKS[6][1], NETWORKS[16][1]], [optimizer] * 2))
    for epoch in range(2):
        for rows in epoch_indices(len(DATA[0].labels), 128, seed=0, epoch=epoch):
            batch = {name: array[rows] for name, array in arrays.items()} | {"indices": rows}
            states, _ = step(states, None, (SOFT, SOFT), batch)
    wanted = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(weights_of(states[0]))])
    np.testing.assert_allclose(numbers(finished, "distilled"), wanted, rtol=1e-4, atol=1e-6)
    assert np.abs(wanted - numbers(finished, "alone")).max() > 1e-2
    last = lines(finished, "distilled")[-1]["train"]
    assert {"loss", "labels", "soft", "soft_weight", "peer/loss", "peer/soft"} <= last.keys()
    assert last["loss"] == pytest.approx(0.3 * last["labels"] + 0.7 * last["soft"], rel=1e-4)


def test_the_report_s_terms_and_numbers_are_the_student_s_and_not_the_peer_s(finished):
    seeds = [lines(finished, "distilled")]
    drawn = {one.name: one for one in _curves.terms({"distilled": seeds}, {"soft temperature": [4.0, 4.0]})}
    shown = {name: [line.get_label() for line in one.figure.axes[0].lines] for name, one in drawn.items()}
    assert shown == {"terms": ["labels", "soft"], "weights": ["labels", "soft"], "numbers": ["soft temperature"]}
    for one in drawn.values():
        assert "peer" not in one.finding
    last = seeds[0][-1]["train"]
    assert drawn["terms"].figure.axes[0].lines[1].get_ydata()[-1] == pytest.approx(last["soft"])


def test_the_run_says_so_and_its_saved_student_is_the_measured_one(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["config"]["distilled_recipe"]["peer"]["network"] == "dense teacher"
    assert "together with dense teacher, each the other&#x27;s teacher" in _numbers.distilled(results)
    found = remeasure(finished, data=DATA, **RECIPES | {"distilled": ONLINE})
    assert {one.network for one in found if not one.problem} == {"teacher", "alone", "distilled"}


def test_a_stopped_run_goes_on_to_the_same_bits(finished, tmp_path):
    steps = len(DATA[0].labels) // 128
    stops = iter([False] * (5 * steps + 2) + [True])
    with pytest.raises(StoppedError, match=rf"distilled: stopped after step {steps + 3} of"):
        run(tmp_path / "a", distilled=ONLINE, stop=lambda: next(stops))
    run(tmp_path / "a", distilled=ONLINE, resume=True)
    np.testing.assert_array_equal(numbers(tmp_path / "a", "distilled"), numbers(finished, "distilled"))
    with pytest.raises(ValueError, match="resume"):
        run(finished, distilled=RECIPES["distilled"], resume=True)


@pytest.mark.parametrize("policy", ["skip", "lower_rate"])
def test_what_diverges_is_seen_in_the_peer_too(policy, tmp_path):
    wild = replace(PEER, optimizer=lambda updates: optax.sgd(1e30), objective=LABELS)
    text = io.StringIO()
    with pytest.raises(FloatingPointError, match=r"distilled .*diverged"):
        run(tmp_path / "a", text, distilled=replace(ONLINE, peer=wild), diverged=policy)


def test_what_cannot_learn_together_is_refused(tmp_path):
    for changes, message in (
        ({"peer": replace(PEER, epochs=3)}, "peer must have the epochs of the network beside it, 2; got 3"),
        ({"peer": replace(PEER, batch_size=64)}, "peer must have the batch_size of the network beside it, 128; got 64"),
        ({"peer": 3}, "peer must be a Recipe or None; got 3"),
        ({"peer": replace(PEER, peer=PEER)}, "peer must have no peer of its own"),
        ({"peer": replace(PEER, connectors={})}, "peer must have no connectors"),
        ({"connectors": {}}, "recipe must have no connectors where two networks learn"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            replace(ONLINE, **changes)
    with pytest.raises(ValueError, match=r"peer must be of the distilled network alone.*the alone network has one"):
        run(tmp_path / "a", alone=replace(RECIPES["alone"], peer=PEER))
    with pytest.raises(ValueError, match=r"nothing of it can be stored.*cache is 'disk'"):
        run(tmp_path / "a", distilled=ONLINE, cache="disk")
    assert not (tmp_path / "a").exists()

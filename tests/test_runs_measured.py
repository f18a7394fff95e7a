"""What can be known of measures before anything is trained."""

import jax
import numpy as np
import pytest
from comparisons import RECIPES

from kdjax import _trees, cross_entropy
from kdjax.metrics import Measure, accuracy, perplexity
from kdjax.runs._measured import check_measures, digest_of_measures
from kdjax.runs.recipes import prepare
from kdjax.training import make_eval_step


@pytest.mark.parametrize("name", ["agreement", "seconds", "rate", "skipped"])
def test_a_name_that_a_record_has_of_its_own_is_refused(name):
    with pytest.raises(ValueError, match=f"The measure's name {name!r} is taken by what compare itself records"):
        check_measures({"accuracy": accuracy, name: accuracy})
    check_measures({"accuracy": accuracy, f"own {name}": accuracy})


def test_the_digest_tells_what_is_made_of_the_same_sums():
    """Else a run that goes on with another measure of the same name takes the mean over both."""
    trainer = prepare(RECIPES["alone"], 128)
    test = {"inputs": np.zeros((2, 8, 8, 1), np.float32), "labels": np.zeros(2, np.int32)}

    def digest(measure):
        return digest_of_measures(trainer, test, {"text": measure}, None)

    def twice(times):
        return Measure(cross_entropy, lambda sums, count: times * sums / count, lower_is_better=True)

    others = [
        *(cross_entropy, perplexity, twice(2.0), twice(3.0)),
        Measure(cross_entropy),
        Measure(cross_entropy, percent=True, lower_is_better=True),
        Measure(cross_entropy, lambda sums, count: {1.0: sums}[count], lower_is_better=True),
    ]
    assert len({digest(one) for one in others}) == len(others)
    assert digest(twice(2.0)) == digest(twice(2.0))
    noise = np.random.default_rng(0)
    drawn = Measure(cross_entropy, lambda sums, count: sums + noise.normal(), percent=True)
    assert digest(drawn) == digest(drawn)
    # A term's is that of its program alone, as older runs wrote it.
    weights = jax.eval_shape(trainer.init, jax.random.key(0), test["inputs"][:1])
    step = make_eval_step(trainer.apply, measures={"text": cross_entropy})
    assert digest(cross_entropy) == digest(twice(1.0)) == _trees.digest_of_program(step, weights, test)

"""Comparisons of tiny networks on the digits, and what they leave in a folder: what the tests of comparisons share."""

import io
import json

import jax
import numpy as np
import optax
import tiny
from rich.console import Console

from kdjax import cross_entropy, on_logits, weighted_sum
from kdjax.checkpoints import load_weights
from kdjax.data import load
from kdjax.losses import soft_target_kl
from kdjax.runs import Recipe, compare

DATA = [load("digits", split) for split in ("train", "test")]
WIDTHS = {"teacher": 16, "alone": 6, "distilled": 6}
LABELS = weighted_sum(labels=(1.0, cross_entropy))
SOFT = weighted_sum(labels=(0.3, cross_entropy), soft=(0.7, on_logits(soft_target_kl, temperature=4.0)))
NETWORKS = {width: tiny.network(width) for width in (6, 16)}


def recipe(phase, objective=LABELS, epochs=2, batch_size=128, **others):
    network = NETWORKS[WIDTHS[phase]]
    # Not Adam: it scales gradients that are rounding noise up to full steps.
    optimizer = optax.sgd(0.3, momentum=0.9)
    return Recipe(network, objective, lambda updates: optimizer, epochs, batch_size, name=f"dense {phase}", **others)


RECIPES = {"teacher": recipe("teacher"), "alone": recipe("alone"), "distilled": recipe("distilled", SOFT)}


def run(out, text=None, **changes):
    settings = {"data": DATA, "seeds": 1, **RECIPES, **changes}
    return compare(out, console=Console(file=text or io.StringIO()), **settings)


def weights_in(folder, phase):
    init, _ = NETWORKS[WIDTHS[phase]]
    return load_weights(folder, jax.eval_shape(init, jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32)))


def numbers(out, phase, seed=0):
    weights = weights_in(out / f"seed-{seed}" / phase / "weights", phase)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(weights)])


def lines(out, phase, seed=0):
    return [json.loads(line) for line in (out / f"seed-{seed}" / phase / "metrics.jsonl").read_text().splitlines()]

"""Inside an epoch the host only hands out work: it reads nothing of what the device computes, and waits for nothing."""

from experiments import _loop, search

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax._src.array import ArrayImpl
from rich.console import Console

from kdjax import Outputs, Weights, cross_entropy, init_state, make_train_step, on_logits, weighted_sum
from kdjax.losses import soft_target_kl
from kdjax.training.sweeps import WAYS, make_sweep_step, stack

SIZE, STEPS, EPOCHS = 4, 6, 3
OBJECTIVE = weighted_sum(labels=(0.5, cross_entropy), soft=(0.5, on_logits(soft_target_kl, temperature=4.0)))
TRAIN = {
    "inputs": jax.random.normal(jax.random.key(0), (SIZE * STEPS, 5)),
    "labels": jnp.arange(SIZE * STEPS) % 3,
    "teacher": Outputs(jax.random.normal(jax.random.key(1), (SIZE * STEPS, 3)), {}),
}


def init(rng, inputs):
    return Weights({"kernel": jax.random.normal(rng, (inputs.shape[1], 3))}, {})


def apply(params, model_state, inputs, *, train, rng=None):
    return Outputs(inputs @ params["kernel"], {}), model_state


@pytest.fixture
def reads(monkeypatch):
    """Every way from a device's array to the host's numbers, or to waiting for it, noted.

    JAX's own `jax.transfer_guard_device_to_host` sees nothing on CPU, where both have one memory.
    """
    noted = []

    def noting(name, function):
        def wrapped(array, *rest, **keywords):
            if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(array)):
                noted.append(name)
            return function(array, *rest, **keywords)

        return wrapped

    for owner, name in (
        (np, "asarray"),
        (np, "array"),
        (jax, "block_until_ready"),
        (jax, "device_get"),
        (ArrayImpl, "block_until_ready"),
        (ArrayImpl, "__array__"),
        (ArrayImpl, "__iter__"),
        (ArrayImpl, "item"),
    ):
        monkeypatch.setattr(owner, name, noting(name, getattr(owner, name)))
    # Under float(), int(), bool(), an f-string, tolist() and repr().
    monkeypatch.setattr(ArrayImpl, "_value", property(noting("_value", ArrayImpl._value.fget)))
    return noted


WAYS_TO_READ = {
    "float": float,
    "bool": bool,
    "repr": repr,
    "format": "{:.1f}".format,
    "list": lambda array: list(array[None]),
    "item": lambda array: array.item(),
    "tolist": lambda array: array.tolist(),
    "asarray": lambda array: np.asarray(array),  # not np.asarray itself, which stands here before the fixture
    "array": lambda array: np.array(array),
    "device_get": lambda array: jax.device_get(array),
    "method": lambda array: array.block_until_ready(),
    "function": lambda array: jax.block_until_ready([array, array]),
}


@pytest.mark.parametrize("read", WAYS_TO_READ.values(), ids=WAYS_TO_READ.keys())
def test_each_way_to_read_is_seen(read, reads):
    number = jnp.float32(2) + 1
    reads.clear()
    read(number)
    assert reads


@pytest.mark.parametrize("per_call", [1, 4])
@pytest.mark.parametrize("reading", [False, True], ids=["as it is", "a loop that reads each loss"])
def test_the_loop_never_waits_inside_an_epoch(per_call, reading, reads, tmp_path, monkeypatch):
    """With many steps a call, as on GPU and TPU, and with one."""
    monkeypatch.setattr(_loop, "from_linen", lambda model: (init, apply))
    monkeypatch.setattr(_loop, "STEPS_PER_CALL", per_call)
    monkeypatch.setattr(_loop.jax, "default_backend", lambda: "gpu")
    recipe = _loop.Recipe("digits_student", OBJECTIVE, lambda updates: optax.sgd(0.1), EPOCHS, SIZE)
    network, calls = _loop.prepare(recipe, examples=SIZE * STEPS, classes=3), []

    def watched(*arguments):
        before = len(reads)
        state, totals, metrics = network.advance(*arguments)
        if reading:
            float(metrics["loss"])
        calls.append((before, len(reads)))
        return state, totals, metrics

    weights = init(jax.random.key(0), TRAIN["inputs"])
    keywords = {"train": TRAIN, "test": TRAIN, "seed": 0, "folder": tmp_path, "label": ""}
    _loop.fit(network._replace(advance=watched), weights=weights, console=Console(quiet=True), **keywords)
    in_epoch = -(-STEPS // per_call)
    assert len(calls) == EPOCHS * in_epoch
    epochs = [calls[first : first + in_epoch] for first in range(0, len(calls), in_epoch)]
    inside = [epoch[-1][1] - epoch[0][0] for epoch in epochs]
    assert inside == [in_epoch if reading else 0] * EPOCHS
    assert epochs[-1][0][0] > 0  # between epochs the loop does read: the metrics


@pytest.mark.parametrize("way", WAYS)
def test_a_sweep_reads_nothing_but_each_epochs_order(way, reads):
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    sweep = make_sweep_step(make_train_step(apply, None, optimizer), None, way=way)
    students = [
        init_state(init(jax.random.key(seed), TRAIN["inputs"]), optimizer, jax.random.key(seed)) for seed in (0, 1)
    ]
    states, objectives = stack(students), stack([OBJECTIVE] * 2)
    reads.clear()
    search.fitted(sweep, states, objectives, TRAIN, EPOCHS, SIZE, 0)
    assert reads == ["asarray"] * EPOCHS

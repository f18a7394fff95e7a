"""Inside an epoch the host only hands out work: it reads nothing of what the device computes, and waits for nothing."""

import dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import fresh_state, objective, optimizer, student, teacher, teacher_weights
from jax._src.array import ArrayImpl

from kdjax import make_train_step
from kdjax.training import make_epoch
from kdjax.training.sweeps import make_sweep_step, stack

SIZE, STEPS, EPOCHS = 4, 6, 3
TRAIN = dense.batch(SIZE * STEPS)
HOST = jax.device_get(TRAIN)
ORDER = np.arange(SIZE * STEPS).reshape(STEPS, SIZE)


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


def plain():
    return make_train_step(student(), teacher, optimizer()), fresh_state(), objective()


def sweep():
    step = make_sweep_step(make_train_step(student(), None, optimizer()), teacher)
    return step, stack([fresh_state(0), fresh_state(1)]), stack([objective()] * 2)


SOURCES = {
    "device": lambda: (TRAIN, ORDER),
    "host": lambda: (HOST, ORDER),
    "stream": lambda: (iter([HOST] * STEPS), None),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("per_call", [1, 4])
@pytest.mark.parametrize("kind", [plain, sweep], ids=["plain", "sweep"])
def test_an_epoch_waits_for_nothing_before_its_end(kind, per_call, source, reads):
    """With many steps a call, as on GPU and TPU, and with one."""
    step, state, goal = kind()
    epoch, its, calls = make_epoch(step, steps_per_call=per_call), teacher_weights(), []

    def watch(done, newest):
        newest["loss"].is_ready()
        calls.append(len(reads))

    for _ in range(EPOCHS):
        arrays, order = SOURCES[source]()
        before = len(reads)
        state, _ = epoch(state, its, goal, arrays, order, watch=watch)
        assert calls[-1] == before, "nothing was read up to the last call of the device"
        assert len(reads) > before, "then the means"
    steps_a_call = 1 if source == "stream" else per_call
    assert len(calls) == EPOCHS * -(-STEPS // steps_a_call)


def test_a_watch_that_reads_each_loss_is_seen(reads):
    """Control."""
    step, state, goal = plain()
    calls = []

    def watch(done, newest):
        float(newest["loss"])
        calls.append(len(reads))

    before = len(reads)
    make_epoch(step)(state, teacher_weights(), goal, TRAIN, ORDER, watch=watch)
    assert calls == [before + 1 + number for number in range(STEPS)]


def test_of_an_order_on_the_device_only_the_order_is_read(reads):
    step, state, goal = plain()
    order, calls = jnp.asarray(ORDER), []
    reads.clear()
    make_epoch(step)(state, teacher_weights(), goal, TRAIN, order, watch=lambda *_: calls.append([*reads]))
    assert calls[-1] == ["asarray"]

"""What a network costs on the device at hand: operations, bytes, and the time of a call."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax import _checks
from kdjax._apply import run
from kdjax._types import Apply, Weights


class Cost(NamedTuple):
    """What XLA counts in the compiled program of one call.

    Attributes:
      flops: floating-point operations, a multiplication and an addition being two. NaN, not measured, where the network
        has a loop, such as `jax.lax.scan`: XLA counts its body once, however often it runs.
      bytes_moved: read and written by its operations; what stays in caches is counted too. NaN where `flops` is.
      temporary_bytes: memory beside the weights, the inputs and the logits.
      weight_bytes: of the params and the model_state.
    """

    flops: float
    bytes_moved: float
    temporary_bytes: int
    weight_bytes: int


class Latency(NamedTuple):
    """How long a call takes, from having the inputs on the device to having the logits there.

    Attributes:
      batch: examples a call.
      calls: how many were timed.
      median_ms: milliseconds, of half of the calls less.
      p05_ms: of 5 % of the calls less.
      p95_ms: of 95 % of the calls less.
      per_second: examples a second, by the median.
    """

    batch: int
    calls: int
    median_ms: float
    p05_ms: float
    p95_ms: float
    per_second: float


def cost(apply: Apply, weights: Weights, inputs: Any) -> Cost:
    """Counts what one call of a network in inference costs; nothing of it is run.

    Args:
      apply: the network.
      weights: its weights.
      inputs: a batch of them, or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: as the network does; `run` says what an Apply is.

    Example:
      >>> apply = lambda params, model_state, inputs, *, train, rng=None: (inputs @ params, model_state)
      >>> cost(apply, Weights(np.ones((8, 4), np.float32), {}), np.ones((2, 8), np.float32)).flops
      128.0
    """
    traced = _traced(apply, weights, inputs)
    compiled = traced.lower().compile()
    counted = {} if _loops(traced.jaxpr) else compiled.cost_analysis() or {}
    memory: Any = compiled.memory_analysis()
    return Cost(
        float(counted.get("flops", np.nan)),
        float(counted.get("bytes accessed", np.nan)),
        int(memory.temp_size_in_bytes),
        sum(int(leaf.size) * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights)),
    )


def latency(
    apply: Apply, weights: Weights, inputs: Any, *, calls: int = 100, warm_up: int = 10, seconds: float | None = None
) -> Latency:
    """Times calls of a network in inference, one after another, on the device at hand.

    Compiling is not counted, nor are the first calls. Run nothing beside it; a machine that does other work has a 95th
    percentile far from its median.

    Args:
      apply: the network.
      weights: its weights.
      inputs: a batch of them: of one example for the latency, of many for the throughput.
      calls: how many are timed.
      warm_up: how many go before them.
      seconds: no call begins after so long, counted from the first; the last three at least are timed, and
        ``calls`` of the result says of how many it is. None: all are made.

    Raises:
      ValueError: if `calls` is not a whole number above 0, `warm_up` is below 0, or `seconds` is not a finite number above
        0, or as the network does.

    Example:
      >>> apply = lambda params, model_state, inputs, *, train, rng=None: (inputs @ params, model_state)
      >>> found = latency(apply, Weights(np.ones((8, 4), np.float32), {}), np.ones((2, 8), np.float32), calls=5)
      >>> found.batch, found.calls, 0 < found.p05_ms <= found.median_ms <= found.p95_ms
      (2, 5, True)
    """
    _checks.whole("calls", calls, 1)
    _checks.whole("warm_up", warm_up, 0)
    if seconds is not None:
        _checks.positive("seconds", seconds)
    call = _traced(apply, weights, inputs).lower().compile()
    weights, inputs = jax.block_until_ready(jax.device_put((weights, inputs)))
    took: list[float] = []
    least = min(calls, 3)
    while len(took) < warm_up + calls:
        if seconds is not None and sum(took) > 1e3 * seconds and len(took) > least:
            break
        start = time.perf_counter()
        jax.block_until_ready(call(weights, inputs))
        took.append(1e3 * (time.perf_counter() - start))
    timed = took[min(warm_up, len(took) - least) :]
    low, median, high = np.percentile(timed, (5, 50, 95))
    batch = jax.tree.leaves(inputs)[0].shape[0]
    return Latency(batch, len(timed), float(median), float(low), float(high), batch / float(median) * 1e3)


def _traced(apply: Apply, weights: Weights, inputs: Any) -> jax.stages.Traced:
    def logits(weights: Weights, inputs: Any) -> Any:
        return run(apply, *weights, inputs, train=False)[0].logits

    return jax.jit(logits).trace(weights, inputs)


def _loops(program: Any) -> bool:
    """Whether a jaxpr has a loop, itself or in a function that it calls; of anything else False."""
    program = getattr(program, "jaxpr", program)
    return any(
        equation.primitive.name in ("scan", "while") or any(map(_loops, jax.tree.leaves([*equation.params.values()])))
        for equation in getattr(program, "eqns", ())
    )

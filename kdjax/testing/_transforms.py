"""The same numbers under jax's transformations, and for a batch that lies on several devices."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax.testing._calling import bound, made, said
from kdjax.testing._case import Case
from kdjax.testing._measured import OF_GRADIENTS, Measured, max_or_nan, relative_error

DEVICES = 4
DATA, EVERYWHERE = PartitionSpec("data"), PartitionSpec()


def transformed(case: Case) -> dict[str, Measured]:
    """By transformation: the values of several batches against those of plain calls, one batch at a time."""
    batches = [made(case, seed=seed) for seed in range(3)]
    function = bound(case)
    wanted = np.stack([function(*arrays) for arrays in batches])
    stacked = tuple(jnp.stack(arrays) for arrays in zip(*batches, strict=True))
    jitted = jax.jit(function)
    found = {
        "jit": np.stack([jitted(*arrays) for arrays in batches]),
        "vmap": jax.jit(jax.vmap(function))(*stacked),
        "scan": jax.jit(lambda *arrays: lax.scan(lambda carry, one: (carry, function(*one)), 0, arrays)[1])(*stacked),
    }
    return {
        way: Measured(relative_error(values, wanted), 1e-4, f"{way} of {said(0)} and two more")
        for way, values in found.items()
    }


def split_batch(case: Case, gather: bool = True) -> dict[str, Measured]:
    """By way of splitting: values and gradient of a batch over 4 devices against those of the whole on one.

    As the train step does it: every device gathers what the others have, and the loss's mean over devices is taken
    within the differentiated function, that of the gradients outside. The gradient is that of a network's parameters,
    which all devices share: one factor for each number of an example in the student's first array.
    """
    arrays = made(case, seed=12, batch=2 * DEVICES)
    of_one = arrays[0].shape[1:]
    parameters = jnp.linspace(0.5, 1.5, math.prod(of_one), dtype=jnp.float32).reshape(1, *of_one)
    function = bound(case)
    shared = [position in case.shared for position in range(len(arrays))]

    def mean(parameters: Any, student: Any, *rest: Any) -> Any:
        values = function(student * parameters, *rest)
        return values.mean(), values

    def on_each(parameters: Any, *own: Any) -> Any:
        def loss(parameters: Any) -> Any:
            moved = (own[0] * parameters, *own[1:])
            whole = (
                array if everywhere or not gather else lax.all_gather(array, "data", tiled=True)
                for array, everywhere in zip(moved, shared, strict=True)
            )
            values = function(*whole)
            return lax.pmean(values.mean(), "data"), values

        (value, values), gradient = jax.value_and_grad(loss, has_aux=True)(parameters)
        return value, values[None], lax.pmean(gradient, "data")

    whole = jax.jit(jax.value_and_grad(mean, has_aux=True))
    (value, values), gradient = whole(parameters, *arrays)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    of_arrays = tuple(EVERYWHERE if everywhere else DATA for everywhere in shared)

    placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arrays, of_arrays, strict=True)]
    (jit_value, jit_values), jit_gradient = whole(jax.device_put(parameters, NamedSharding(mesh, EVERYWHERE)), *placed)
    shard_map = jax.jit(
        jax.shard_map(on_each, mesh=mesh, in_specs=(EVERYWHERE, *of_arrays), out_specs=(EVERYWHERE, DATA, EVERYWHERE))
    )
    pmap = jax.pmap(
        on_each, "data", in_axes=(None, *(None if everywhere else 0 for everywhere in shared)), out_axes=(None, 0, None)
    )
    in_parts = (
        a if everywhere else a.reshape(DEVICES, -1, *a.shape[1:]) for a, everywhere in zip(arrays, shared, strict=True)
    )
    pmap_value, pmap_values, pmap_gradient = pmap(parameters, *in_parts)
    found = {
        "jit": (jit_value, jit_values, jit_gradient),
        "shard_map": shard_map(parameters, *arrays),
        "pmap": (pmap_value, pmap_values[:, 0], pmap_gradient),
    }
    error = functools.partial(_split_error, value=value, values=values, gradient=gradient)
    return {way: Measured(error(answer), 1e-4, f"{way} of {said(12, 2 * DEVICES)}") for way, answer in found.items()}


def _split_error(answer: Any, value: Any, values: Any, gradient: Any) -> float:
    found_value, found_values, found_gradient = answer
    if found_values.shape[-1] != values.shape[-1]:  # not gathered: each device has the values of its own examples
        found_values = found_values.reshape(values.shape)
    copies = np.broadcast_to(values, found_values.shape)
    return max_or_nan(
        [
            relative_error(found_value, value),
            relative_error(found_values, copies),
            relative_error(found_gradient, gradient, OF_GRADIENTS),
        ]
    )

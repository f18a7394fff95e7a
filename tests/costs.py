"""What the value and the gradient of each loss cost at shapes as they occur: what XLA counts in the compiled program."""

import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import more_inputs
import numpy as np

from kdjax import losses
from kdjax.testing import inputs

BATCHES = (32, 128, 512)
BANK, NEGATIVES = 50_000, 4096
LOGITS, LABEL = (100,), ()
WORDS = 32_000
# By what makes the row's arrays: the shape of one example in each, or of the whole array where it has no examples.
SHAPES = {
    inputs.logits: (LOGITS, LOGITS),
    inputs.labelled_logits: (LOGITS, LOGITS, LABEL),
    inputs.equal_maps: ((8, 8, 64), (8, 8, 64)),
    inputs.unequal_maps: ((8, 8, 64), (8, 8, 256)),
    more_inputs.large_maps: ((8, 8, 64), (8, 8, 64)),
    more_inputs.layers: ((16, 16, 32), (8, 8, 64), (16, 16, 32), (8, 8, 64)),
    inputs.sequences: ((64, 128), (64, 256)),
    inputs.embeddings: ((128,), (256,)),
    inputs.labelled_embeddings: ((128,), (256,), LABEL),
    inputs.equal_embeddings: ((128,), (128,)),
    more_inputs.embeddings_and_queue: ((128,), (128,), (4096, 128)),
    more_inputs.stored_logits: (LOGITS, (10,), (10,)),
    more_inputs.own_labelled_logits: (LOGITS, LABEL),
    more_inputs.doubly_labelled_logits: (LOGITS, LOGITS, LOGITS, LABEL),
    more_inputs.unlike_logits: (LOGITS, (200,)),
    more_inputs.drawn_logits: (LOGITS, (10,), (10,)),
    more_inputs.maps_of_classes: ((8, 8, 100), (4, 4, 100)),
    more_inputs.hidden_states_and_labels: ((128,), (128, WORDS), LABEL),
    more_inputs.hidden_states_and_heads: ((128,), (128, WORDS), (256,), (256, WORDS)),
    more_inputs.places_in_a_bank: ((128,), (128,), LABEL, (NEGATIVES,)),
}


class Cost(NamedTuple):
    """Of one compiled program. In a program with a loop, what the loop's body does is counted once."""

    flops: float
    bytes_moved: float
    bytes_held: int
    loops: bool


def cost(case, batch):
    """Of the value and of the gradient for the student, at the defaults of all hyper-parameters that have one."""
    arrays = _arrays(case, batch)
    keywords = _needed_keywords(case, arrays[0].shape[-1])
    rest = ()
    if case.name == "crd":  # the row's bank is a constant; a real one comes in
        rest = (jax.eval_shape(lambda: losses.init_bank(jax.random.key(0), BANK, arrays[0].shape[-1])),)

    def mean(*arrays):
        if case.name == "crd":
            student, teacher, indices, negatives, bank = arrays
            return losses.crd(student, teacher, indices, bank, negatives)[0].mean()
        return case.function(*arrays, **keywords).mean()

    compiled = jax.jit(jax.value_and_grad(mean)).lower(*arrays, *rest).compile()
    counted = compiled.cost_analysis()
    return Cost(
        counted["flops"],
        counted["bytes accessed"],
        compiled.memory_analysis().temp_size_in_bytes,
        " while(" in compiled.as_text(),
    )


def shapes(case):
    """In words."""
    names = list(inspect.signature(inspect.unwrap(case.function)).parameters)
    shown = []
    for position, (name, shape) in enumerate(zip(names, SHAPES[case.make], strict=False)):
        leading = [] if position in case.shared else ["batch"]
        shown.append(f"{name} [{', '.join(map(str, [*leading, *shape]))}]")
    return "; ".join([*shown, *([f"a bank of {BANK:,}"] if case.name == "crd" else [])])


def _arrays(case, batch):
    small = case.make(np.random.default_rng(0), 2)
    assert len(small) == len(SHAPES[case.make]), f"{case.make.__name__} needs its shapes in costs.py"
    return [
        jax.ShapeDtypeStruct(
            shape if position in case.shared else (batch, *shape),
            jnp.float32 if np.issubdtype(array.dtype, np.floating) else jnp.int32,
        )
        for position, (array, shape) in enumerate(zip(small, SHAPES[case.make], strict=True))
    ]


def _needed_keywords(case, channels):
    """Those without a default; one number for each channel where the row has such."""
    parameters = inspect.signature(inspect.unwrap(case.function)).parameters
    needed = {
        name: value for name, value in case.keywords.items() if parameters[name].default is inspect.Parameter.empty
    }
    return {
        name: np.resize(value, channels).astype(np.float32) if isinstance(value, np.ndarray) else value
        for name, value in needed.items()
    }

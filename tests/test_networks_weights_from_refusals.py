"""What the transfer of PyTorch's weights refuses, by the name of the argument and what it was."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax import Weights
from kdjax.networks import weights_from

unchecked = inspect.unwrap(weights_from)  # as users have it, who have no checker of types
STATE = {"a.weight": np.ones((2, 3), np.float32), "a.bias": np.ones(2, np.float32)}
OWN = Weights({"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, {})


@pytest.mark.parametrize(
    ("state", "arguments", "message"),
    [
        ({"a.bias": np.array([1, np.nan])}, {}, "source must hold finite numbers; a.bias has NaN or infinity"),
        ({"a.bias": np.array([1, -np.inf])}, {}, "source must hold finite numbers; a.bias has NaN or infinity"),
        (
            {"a.index": np.ones(2, np.int64)},
            {},
            "source must hold floating-point numbers; a.index is int64. Name it in skip",
        ),
        ({3: np.ones(2)}, {}, "source must map names to arrays; got the keys"),
        ({}, {"skip": ("b",)}, "skip must name entries of source; 'b' stands in none of a.weight, a.bias"),
        ({}, {"skip": ("(",)}, r"skip must be regular expressions; '\(' is none"),
        ({}, {"keep": ("bias",)}, "target must be the module's weights where keep names some"),
        ({}, {"target": OWN}, "target must be the module's weights where keep names some, and None otherwise"),
        (
            {},
            {"target": Weights({}, {}), "keep": ("bias",)},
            "target must be the weights of module; params/bias: wanted",
        ),
        ({}, {"target": OWN, "keep": ("biases",)}, "keep must name parts of the tree; 'biases' stands in no path"),
        ({}, {"part": "model"}, "part must be None where source is a mapping"),
        ({}, {"logits": np.ones((2, 3))}, "logits and the module's logits must have the same shape"),
        ({}, {"logits": np.full((4, 2), np.nan)}, "logits must be those of the module"),
        ({}, {"logits": np.ones((4, 2)), "tolerance": 0.0}, "tolerance must be a finite number greater than 0"),
        ({}, {"names": "a"}, "names must be a mapping of words to words, or None; got 'a'"),
        ({}, {"names": {"a": 3}}, "names must be a mapping of words to words, or None; got {'a': 3}"),
        ({}, {"flattened": "first"}, "flattened must be a mapping of words to words, or None; got 'first'"),
        ({}, {"skip": "2"}, r"skip must be several regular expressions, such as \('head',\); got '2'"),
        ({}, {"skip": [2]}, r"skip must be several regular expressions, such as \('head',\); got \(2,\)"),
        ({}, {"names": {"a.weight": "kernel"}}, "names must have keys that stand for layers; 'a.weight' does not"),
    ],
)
def test_what_is_wrong_is_said(state, arguments, message):
    with pytest.raises(ValueError, match=message):
        unchecked(STATE | state, nn.Dense(2), np.ones((4, 3), np.float32), **arguments)


@pytest.mark.parametrize(("inputs", "shown"), [(None, "None"), ([[1.0, 2.0]], r"\[\[1.0, 2.0\]\]"), ("x", "'x'")])
def test_inputs_are_arrays(inputs, shown):
    with pytest.raises(ValueError, match=f"inputs must be a batch of arrays, or of jax.ShapeDtypeStruct; got {shown}"):
        weights_from(STATE, nn.Dense(2), inputs)


def test_a_source_is_a_path_or_arrays():
    with pytest.raises(ValueError, match="source must be a file's path, or arrays by name; got None"):
        unchecked(None, nn.Dense(2), np.ones((4, 3)))


def test_what_is_said_of_a_layer_that_reads_no_flattened_map_is_refused():
    """Of one that may, either answer is taken, needed or not; by the path of its kernel too."""
    images, state = np.ones((1, 2, 2, 3), np.float32), {"c.weight": np.ones((3, 3, 1, 1)), "c.bias": np.ones(3)}
    state |= {"h.weight": np.arange(24.0).reshape(2, 12), "h.bias": np.ones(2)}
    module = nn.Sequential([nn.Conv(3, (1, 1)), lambda x: x.reshape(len(x), -1), nn.Dense(2)])

    def kernel(**flattened):
        return weights_from(state, module, images, flattened=flattened)[0].params["layers_2"]["kernel"]

    assert (
        kernel(**{"layers_2/kernel": "last"}).tolist()
        == kernel(layers_2="last").tolist()
        == state["h.weight"].T.tolist()
    )
    assert kernel().tolist() == kernel(**{"layers_2/kernel": "first"}).tolist() != state["h.weight"].T.tolist()
    for way in ("first", "last"):
        weights_from(STATE, nn.Sequential([nn.Dense(2)]), np.ones((4, 3)), flattened={"layers_0": way})
    with pytest.raises(ValueError, match="flattened must name layers that may read a flattened map; layers_0 does not"):
        kernel(layers_0="first")


@pytest.mark.parametrize("several", [{"extra"}, ["extra"], {"extra": 1}.keys(), np.array(["extra"])])
def test_several_patterns_come_in_anything(several):
    source = STATE | {"extra.weight": np.ones(5, np.float32)}
    found, _ = unchecked(
        source, nn.Dense(2), {"inputs": np.ones((4, 3), np.float32)}["inputs"], skip=several, keep=None
    )
    assert found.params["bias"].tolist() == [1.0, 1.0]


def test_logits_need_inputs():
    with pytest.raises(ValueError, match=r"inputs must be arrays where logits are given; got jax.ShapeDtypeStruct"):
        weights_from(STATE, nn.Dense(2), jax.ShapeDtypeStruct((4, 3), np.float32), logits=np.ones((4, 2)))

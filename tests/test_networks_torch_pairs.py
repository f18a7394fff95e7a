"""Which layer goes to which: what decides among several of one shape, and the error where nothing does."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from kdjax.networks import weights_from

NOISE = np.random.default_rng(0)


def linear(*names, sizes=(4, 4), bias=True):
    state = {}
    for name in names:
        state[f"{name}.weight"] = NOISE.normal(size=sizes[::-1]).astype(np.float32)
        if bias:
            state[f"{name}.bias"] = NOISE.normal(size=sizes[1]).astype(np.float32)
    return state


def norm(*names, size=4):
    return {
        f"{name}.{leaf}": NOISE.normal(size=size).astype(np.float32) for name in names for leaf in ("weight", "bias")
    }


class Chain(nn.Module):
    """Layers by name, called in this order: "a: Dense" is one of 4 numbers."""

    layers: tuple

    @nn.compact
    def __call__(self, x, train=False):
        made = {}
        for one in self.layers:
            name, kind = one.split(": ")
            made[name] = (
                nn.Dense(int(kind[5:] or 4), name=name) if kind.startswith("Dense") else nn.LayerNorm(1e-5, name=name)
            )
        for layer in made.values():
            x = layer(x)
        return x


X = jax.ShapeDtypeStruct((2, 4), np.float32)


def went(state, *layers, **keywords):
    """By layer of the module: the source's, and what decided."""
    _, report = weights_from(state, Chain(layers), X, **keywords)
    where = {}
    for entry in report:
        if entry.name and entry.name.endswith("bias"):
            where[entry.name.split("/")[1]] = (entry.source.rpartition(".")[0], entry.why)
    return where


def test_the_order_of_calls_decides_where_all_is_in_one_order():
    state = linear("one", "two") | norm("three") | linear("four")
    found = went(state, "z: Dense", "b: Dense", "c: Norm", "a: Dense")
    said = "by order among 3 of this shape"
    assert found == {"z": ("one", said), "b": ("two", said), "c": ("three", ""), "a": ("four", said)}


def test_equal_names_go_before_the_order():
    state = linear("two", "one") | linear("blocks.0.fc1", "blocks.0.fc2")
    found = went(state, "blocks_0_fc2: Dense", "one: Dense", "blocks_0_fc1: Dense", "two: Dense")
    said = "by name among 4 of this shape"
    assert found["one"] == ("one", said)
    assert found["blocks_0_fc1"] == ("blocks.0.fc1", said)


def test_numbers_that_flax_gave_are_no_names():
    """Dense_0 is the outer layer here, called last; PyTorch's dense.0 is the first."""
    state = linear("dense.0", "dense.1")
    found = went(state, "Dense_1: Dense", "Dense_0: Dense")
    assert {name: one for name, (one, _) in found.items()} == {"Dense_1": "dense.0", "Dense_0": "dense.1"}


def test_names_that_contradict_the_order_are_asked_about():
    with pytest.raises(ValueError, match=r"names must say which is which.*: by order among 3 .* one would go to two"):
        went(linear("one", "two", "three"), "two: Dense", "one: Dense", "third: Dense")


def test_names_decide_and_the_rest_follows():
    state = linear("one", "two", "three")
    found = went(state, "two: Dense", "one: Dense", "third: Dense", names={"three": "third"})
    assert {name: one for name, (one, _) in found.items()} == {"one": "one", "two": "two", "third": "three"}


@pytest.mark.parametrize("called", [("a", "an", "b", "bn", "s", "sn"), ("s", "sn", "a", "an", "b", "bn")])
def test_a_norm_follows_the_layer_before_it_where_a_branch_is_called_earlier(called):
    """The branch s has a shape of its own; its norm has not, and by order it would get another's numbers."""

    class Branches(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            kinds = {
                "a": nn.Dense(4, name="l0"),
                "b": nn.Dense(4, name="l1"),
                "s": nn.Dense(4, use_bias=False, name="l2"),
            }
            for number, name in enumerate("abs"):
                kinds[f"{name}n"] = nn.LayerNorm(1e-5, name=f"l{number + 3}")
            for name in called:
                x = kinds[name](x)
            return x

    state = linear("a") | norm("an") | linear("b") | norm("bn") | linear("s", bias=False) | norm("sn")
    weights, report = weights_from(state, Branches(), X)
    for number, name in enumerate(("an", "bn", "sn")):
        np.testing.assert_array_equal(weights.params[f"l{number + 3}"]["scale"], state[f"{name}.weight"])
    said = {entry.name: entry.why for entry in report}["params/l5/scale"]
    assert said.startswith("by order" if called[0] == "a" else "by the layer before it, among 3 of this shape")


def test_matrices_alike_in_another_order_are_asked_about():
    """As in a bottleneck, where the branch has the shape of the last convolution, and is called before it."""
    state = linear("a", sizes=(4, 3)) | linear("b", sizes=(3, 5)) | linear("c", "s", sizes=(5, 4))

    class Branches(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            wide = jax.numpy.ones((2, 5))
            s = nn.Dense(4, name="branch")(wide)
            return s + nn.Dense(4, name="l3")(nn.Dense(5, name="l2")(nn.Dense(3, name="l1")(x)))

    with pytest.raises(
        ValueError, match=r"c, s and branch, l3 have one shape.* by order c would go to branch, which has other"
    ):
        weights_from(state, Branches(), X)
    weights, _ = weights_from(state, Branches(), X, names={"s": "branch"})
    np.testing.assert_array_equal(weights.params["l3"]["bias"], state["c.bias"])


def test_a_source_sorted_by_name_keeps_no_order():
    names = [f"layers.{number}.fc" for number in range(11)]
    state = linear(*names)
    state = {name: state[name] for name in sorted(state)}
    found = went(state, *(f"Dense_{number}: Dense" for number in reversed(range(11))))
    assert found["Dense_0"] == ("layers.10.fc", "by number among 11 of this shape")
    assert found["Dense_8"] == ("layers.2.fc", "by number among 11 of this shape")
    mixed = linear("first", *names)
    with pytest.raises(ValueError, match=r"the source is sorted by name, as .safetensors files are"):
        went({name: mixed[name] for name in sorted(mixed)}, *(f"Dense_{number}: Dense" for number in range(12)))


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(7, use_bias=False, name="head")(nn.Embed(7, 4, name="table")(tokens))


def test_a_matrix_that_may_be_a_table_or_a_layer_is_asked_about():
    state = {name: NOISE.normal(size=(7, 4)).astype(np.float32) for name in ("wte.weight", "lm_head.weight")}
    tokens = jax.ShapeDtypeStruct((2, 3), np.int32)
    with pytest.raises(
        ValueError, match=r"wte, lm_head, of shape \(7, 4\), may be the linear head or the embedding table"
    ):
        weights_from(state, Tied(), tokens)
    weights, _ = weights_from(state, Tied(), tokens, names={"lm_head": "head"})
    np.testing.assert_array_equal(weights.params["table"]["embedding"], state["wte.weight"])
    np.testing.assert_array_equal(weights.params["head"]["kernel"], state["lm_head.weight"].T)
    one = state["wte.weight"]
    weights, _ = weights_from({"wte.weight": one, "lm_head.weight": one}, Tied(), tokens)
    np.testing.assert_array_equal(weights.params["head"]["kernel"], one.T)


def test_what_is_left_over_is_listed_on_both_sides():
    state = linear("one") | linear("two", sizes=(4, 5))
    said = r"in the source two \(5, 4\); in the module b \(4, 6\), linear of bias\+weight. Nearest: two to b"
    with pytest.raises(ValueError, match=said):
        went(state, "a: Dense", "b: Dense6")
    with pytest.raises(ValueError, match=r"in the source two .*; in the module nothing. Nearest: nothing"):
        went(state, "a: Dense")
    with pytest.raises(ValueError, match=r"in the source nothing; in the module b"):
        went(linear("one"), "a: Dense", "b: Dense5")
    with pytest.raises(
        ValueError, match=r"in the source one \(4, 4\); in the module a \(4, 4\), linear of bias\+weight"
    ):
        went(linear("one", bias=False), "a: Dense")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"ones": "a"}, "names must have keys that stand for layers; 'ones' does not: one do"),
        ({"one": "c"}, "names must have values that stand for layers; 'c' does not: a, b do"),
        ({"one": "a", "two": "a"}, "names must give each path once"),
    ],
)
def test_names_that_stand_for_nothing_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        went(linear("one", "two"), "a: Dense", "b: Dense", names=names)


def test_what_all_names_begin_with_is_no_part_of_a_name():
    """As ``torch.nn.DataParallel`` saves them, registered in another order than they are called in."""
    state = linear("module.one", "module.two") | linear("module.out", sizes=(4, 3))
    found = went(state, "two: Dense", "one: Dense", "out: Dense3")
    assert {layer: source for layer, (source, _) in found.items()} == {
        "one": "module.one",
        "two": "module.two",
        "out": "module.out",
    }


def test_numbers_that_do_not_ascend_are_no_order():
    """Two sorted files, one after the other: layers.10 before layers.2."""
    state = linear("stem", sizes=(4, 4)) | linear(*(f"layers.{number}" for number in (0, 1, 10, 2)), bias=False)
    with pytest.raises(ValueError, match="stand in another order than that of their numbers"):
        weights_from(state, Numbered(), X)


class Numbered(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x)
        for _ in range(4):
            x = nn.Dense(4, use_bias=False)(x)
        return x

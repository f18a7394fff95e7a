"""Networks that lie differently on four devices: the same numbers as on one, and each array stays where it was put."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from networks import batch, fresh_state, objective, student, teacher, teacher_weights

from kdjax import make_train_step
from kdjax.training import data_mesh, jit_step, replicate, shard_batch, shard_by_rules, shard_largest_axis

OPTIMIZER = optax.sgd(0.01, momentum=0.9)
# Dense layers split by their output, then by their input; convolutions by their output channels.
RULES = [
    ("hidden/kernel", P(None, "model")),
    ("logits/kernel", P("model")),
    (r"stage\d/kernel", P(None, None, None, "model")),
]


def train(step, state, taught, place):
    for seed in range(5):
        state, metrics = step(state, taught, objective(), place(batch(seed=seed)))
    return jax.device_get(state.params), metrics["loss"], state


@pytest.fixture(scope="module")
def step():
    return make_train_step(student()[1], teacher()[1], OPTIMIZER)


@pytest.fixture(scope="module")
def wanted(step):
    return train(jit_step(step), fresh_state(transform=OPTIMIZER), teacher_weights(), lambda whole: whole)


def places(tree):
    return [leaf.sharding for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("model", [1, 2])
def test_a_split_student_and_a_split_teacher_give_the_same_numbers(model, step, wanted):
    mesh = data_mesh(model=model)
    taught = shard_by_rules(teacher_weights(), mesh, RULES) if model > 1 else replicate(teacher_weights(), mesh)
    state = shard_largest_axis(fresh_state(transform=OPTIMIZER), mesh, at_least=0)
    at_first = places(state)
    params, loss, state = train(jit_step(step), state, taught, lambda whole: shard_batch(whole, mesh))
    for new, old in zip(jax.tree.leaves(params), jax.tree.leaves(wanted[0]), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-6)
    np.testing.assert_allclose(loss, wanted[1], rtol=1e-6)

    assert places(state) == at_first
    parts = 4 // model
    for kernel in (state.params["hidden"]["kernel"], state.opt_state[0].trace["hidden"]["kernel"]):
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(16 // parts, 8)}
    if model > 1:
        kernels = (
            taught.params["hidden"]["kernel"],
            taught.params["logits"]["kernel"],
            taught.params["stage2"]["kernel"],
        )
        assert [kernel.addressable_shards[0].data.shape for kernel in kernels] == [(32, 6), (6, 10), (3, 3, 6, 4)]


def test_each_array_is_split_along_its_longest_axis_that_divides():
    mesh = data_mesh()
    shapes = {"wide": (4, 12), "odd": (9, 8), "none": (3, 5), "few": (8,), "scalar": (), "key": None}
    tree = {name: jnp.zeros(shape) if shape is not None else jax.random.key(0) for name, shape in shapes.items()}
    specs = {name: leaf.sharding.spec for name, leaf in shard_largest_axis(tree, mesh, at_least=10).items()}
    whole = P()
    assert specs == {
        "wide": P(None, "data"), "odd": P(None, "data"), "none": whole, "few": whole, "scalar": whole, "key": whole
    }  # fmt: skip
    assert shard_largest_axis(tree, mesh)["wide"].sharding.spec == whole


def test_the_first_rule_that_finds_a_path_counts():
    mesh = data_mesh(model=2)
    tree = {"a": {"kernel": np.zeros((4, 6)), "bias": np.zeros(6)}, "b": {"kernel": np.zeros((8, 2))}}
    rules = [("^a/kernel", P("model", None)), ("kernel", P(("data", "model")))]
    placed = shard_by_rules(tree, mesh, rules)
    assert placed["a"]["kernel"].addressable_shards[0].data.shape == (2, 6)
    assert placed["b"]["kernel"].addressable_shards[0].data.shape == (2, 2)
    assert placed["a"]["bias"].is_fully_replicated


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (("kernle", P("model")), r"rules: 'kernle' must find an array; there are .*params/hidden/kernel"),
        (("stage(", P("model")), r"rules must be regular expressions; 'stage\(' is none"),
        (("kernel", P("modle")), r"rules: the axis of 'kernel' must be .*'modle'"),
        (
            ("hidden/bias", P(None, "model")),
            r"rules: \(None, 'model'\) must have no more axes than params/hidden/",
        ),
        (
            ("stage1/kernel", P("model")),
            r"params/stage1/kernel: axis 0 must divide by the 2 parts of 'model'; got shape \[3, 3, 1, 6\]",
        ),
    ],
)
def test_a_rule_that_cannot_hold_is_told(rule, error):
    with pytest.raises(ValueError, match=error):
        shard_by_rules(teacher_weights(), data_mesh(model=2), [rule])


def test_a_model_axis_divides_the_devices():
    assert data_mesh(model=2).shape == {"data": 2, "model": 2}
    with pytest.raises(ValueError, match="model must divide the 4 devices of a process; got 3"):
        data_mesh(model=3)


def test_arrays_of_1024_numbers_or_more_are_split_by_default():
    tree = {"small": jnp.zeros((4, 255)), "large": jnp.zeros((256, 4))}
    split = shard_largest_axis(tree, data_mesh())
    assert {name: leaf.is_fully_replicated for name, leaf in split.items()} == {"small": True, "large": False}

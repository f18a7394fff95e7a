"""The page of foreign training loops: they train, they are short, and each framework's gradient is plain JAX's."""

import contextlib
import io
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.losses import rkd_distance, soft_target_kl

PAGE = (Path(__file__).parents[1] / "docs" / "drop-in.md").read_text()
LOOPS = ["Plain optax", "Flax NNX", "Equinox", "Keras 3 on JAX", "Many devices: shard_map"]
SECTIONS = {
    heading: (
        re.findall(r"```py\n(.*?)```", text, flags=re.DOTALL),
        "".join(re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)),
    )
    for heading, text in re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
}
LINE = r"(\w+): ([\d.]+)% of the test digits right, KL from the teacher ([\d.]+)\n"


@pytest.fixture(autouse=True, scope="module")
def as_a_stranger_has_it():
    with jax.numpy_rank_promotion("allow"):  # Keras adds biases by it
        yield


def run(blocks, names):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(compile(block, "drop-in.md", "exec"), names)
    return printed.getvalue()


@pytest.fixture(scope="module")
def page():
    """What the page prints under each heading, and the names that are there after it."""
    names, found = {}, {}
    for heading, (blocks, _) in SECTIONS.items():
        found[heading] = run(blocks, names), dict(names)
    return found


@pytest.fixture(scope="module")
def shared(page):
    return page["The data and the teacher"][1]


def one_batch(shared, size=64):
    rows = slice(0, size)
    arrays = shared["images"], shared["train"].labels, shared["teacher_logits"], shared["teacher_hidden"]
    return [array[rows] for array in arrays]


def fresh(shared, heading, **names):
    """The section's student before its first step."""
    names = {**shared, "report": lambda when, logits: None, **names}
    run(SECTIONS[heading][0][:1], names)
    return names


def plain_gradient(shared, weights):
    """Of the same mean loss, by `jax.grad`, with respect to two dense layers' kernels [in, out] and biases."""
    images, labels, teacher_logits, _ = map(jnp.asarray, one_batch(shared))

    def loss(weights):
        (into, shift), (out, offset) = weights
        logits = jax.nn.relu(images @ into + shift[None]) @ out + offset[None]
        hard = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
        return jnp.mean(0.3 * hard + 0.7 * soft_target_kl(logits, teacher_logits, temperature=4.0))

    gradient = jax.grad(loss)(jax.tree.map(jnp.asarray, weights))
    assert all(np.abs(array).max() > 0.01 for array in jax.tree.leaves(gradient))
    return gradient


def close(first, second, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), first, second)


def test_every_section_of_a_loop_has_three_blocks_and_its_numbers():
    assert [heading for heading in SECTIONS if heading in LOOPS] == LOOPS
    for heading in LOOPS:
        (networks, loop, report), printed = SECTIONS[heading]
        assert 'report("before"' in networks
        assert "soft_target_kl(" in loop
        assert 'report("after"' in report
        assert len(re.findall(LINE, printed)) == 2
    assert PAGE.count("```py") == sum(len(blocks) for blocks, _ in SECTIONS.values())


@pytest.mark.parametrize("heading", LOOPS)
def test_a_loop_has_at_most_15_lines(heading):
    loop = SECTIONS[heading][0][1]
    assert len([line for line in loop.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("heading", LOOPS)
def test_the_student_is_accurate_and_its_kl_from_the_teacher_falls_to_a_tenth(heading, page):
    (_, _, kl_before), (_, accuracy, kl) = re.findall(LINE, page[heading][0])
    assert float(accuracy) > 90  # chance is 10
    assert float(kl) < float(kl_before) / 10


@pytest.mark.parametrize("heading", ["The data and the teacher", *LOOPS])
def test_the_page_says_what_is_printed(heading, page):
    printed, written = (re.findall(LINE, text) for text in (page[heading][0], SECTIONS[heading][1]))
    assert [when for when, *_ in printed] == [when for when, *_ in written]
    for (_, *numbers), (_, *said) in zip(printed, written, strict=True):
        np.testing.assert_allclose(float(numbers[0]), float(said[0]), atol=2)
        np.testing.assert_allclose(float(numbers[1]), float(said[1]), rtol=0.3, atol=0.001)


def test_the_gradient_in_flax_nnx_is_that_of_plain_jax(page, shared):
    nnx, loss = (page["Flax NNX"][1][name] for name in ("nnx", "loss"))
    student = fresh(shared, "Flax NNX")["student"]
    gradient = nnx.jit(nnx.grad(loss))(student, *one_batch(shared)[:2])
    dense = lambda tree: [(tree[name].kernel[...], tree[name].bias[...]) for name in ("into", "out")]  # noqa: E731
    close(dense(gradient), plain_gradient(shared, dense(nnx.state(student))))


def test_the_gradient_in_equinox_is_that_of_plain_jax(page, shared):
    eqx, loss = (page["Equinox"][1][name] for name in ("eqx", "loss"))
    student = fresh(shared, "Equinox")["student"]
    _, gradient = eqx.filter_jit(loss)(student, *one_batch(shared)[:3])
    dense = lambda tree: [(layer.weight.T, layer.bias) for layer in tree.layers]  # noqa: E731
    close(dense(gradient), plain_gradient(shared, dense(student)))


def test_the_gradient_in_keras_is_that_of_plain_jax(page, shared):
    """One step of SGD at learning rate 1, by Keras' own train step, moves the weights by the gradient."""
    keras, loss, targets = (page["Keras 3 on JAX"][1][name] for name in ("keras", "loss", "targets"))
    student = fresh(shared, "Keras 3 on JAX")["student"]
    student.compile(optimizer=keras.optimizers.SGD(1.0), loss=loss)
    dense = lambda: [tuple(np.array(v.value) for v in (layer.kernel, layer.bias)) for layer in student.layers]  # noqa: E731
    before = dense()
    student.train_on_batch(one_batch(shared)[0], targets[:64])
    close(jax.tree.map(np.subtract, before, dense()), plain_gradient(shared, before))


def trained(shared, heading, steps, optimizer, replaced=("", "")):
    few = lambda *arrays: itertools.islice(shared["batches"](*arrays), steps)  # noqa: E731
    names = fresh(shared, heading, batches=few, optimizer=optimizer)
    loop = SECTIONS[heading][0][1]
    assert replaced[0] in loop
    run([loop.replace(*replaced)], names)
    return names["student"]


def test_the_gradient_in_the_optax_loop_and_on_four_devices_is_that_of_plain_jax(shared):
    network, start = shared["network"], shared["init"](1, 16)
    images, labels, teacher_logits, teacher_hidden = map(
        jnp.asarray, next(shared["batches"](shared["images"], shared["train"].labels, *one_batch(shared, None)[2:]))
    )

    def loss(student):
        logits, hidden = network(student, images)
        hard = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
        soft = soft_target_kl(logits, teacher_logits, temperature=4.0)
        return jnp.mean(0.3 * hard + 0.7 * soft + rkd_distance(hidden, teacher_hidden))

    gradient = jax.grad(loss)(start)
    for heading in (LOOPS[0], LOOPS[-1]):
        close(jax.tree.map(jnp.subtract, start, trained(shared, heading, 1, optax.sgd(1.0))), gradient)


def test_the_loop_on_four_devices_is_the_loop_on_one(shared):
    assert jax.device_count() == 4
    one = trained(shared, LOOPS[0], 10, optax.sgd(0.1))
    close(trained(shared, LOOPS[-1], 10, optax.sgd(0.1)), one)
    close(trained(shared, LOOPS[-1], 10, shared["optimizer"]), trained(shared, LOOPS[0], 10, shared["optimizer"]))


def test_relations_of_each_device_alone_are_another_loss(shared):
    gathered = 'rkd_distance(*jax.lax.all_gather((hidden, teacher_hidden), "devices", tiled=True))'
    alone = trained(shared, LOOPS[-1], 10, optax.sgd(0.1), (gathered, "rkd_distance(hidden, teacher_hidden)"))
    together = trained(shared, LOOPS[0], 10, optax.sgd(0.1))
    assert max(float(jnp.abs(alone[name] - together[name]).max()) for name in together) > 1e-3

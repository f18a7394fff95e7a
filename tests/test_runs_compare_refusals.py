"""What a comparison refuses, before any training: wrong settings, folders in use, changed resumptions, other teachers."""

import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from comparisons import DATA, LABELS, NETWORKS, RECIPES, SOFT, recipe, run, weights_in

from kdjax import Weights, cross_entropy, on_feature, weighted_sum
from kdjax.checkpoints import save_weights
from kdjax.data import unit_range
from kdjax.losses import hint
from kdjax.models import CNN
from kdjax.networks import from_linen
from kdjax.runs import Recipe, _seeds
from kdjax.runs.recipes import given_teacher, prepare


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    run(out, seeds=2)
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds must be a whole number"),
        ({"devices": 5}, "devices must be at most the 4 there are; got 5"),
        ({"dtype": "float16"}, "dtype"),
        (
            {"dtype": "bfloat16", "alone": replace(recipe("alone"), network=from_linen(CNN((4,), dtype=jnp.float32)))},
            "dtype must be what the alone's layers compute in; got 'bfloat16', and all their products are of float32",
        ),
        ({"data": DATA[:1]}, "data must be two data sets"),
        ({"alone": recipe("alone", batch_size=5000)}, "batch_size must be at most the 1257 examples; got 5000"),
        ({"devices": 4, "alone": recipe("alone", batch_size=130)}, "batch_size of alone must divide by the 4 devices"),
        ({"print_every": -1}, "print_every must be a whole number of 0 or more; got -1"),
        ({"data": [DATA[0], replace(DATA[1], class_names=tuple("abcdefghij"))]}, "data must have the same class names"),
        (
            {"distilled": recipe("distilled", weighted_sum(hint=(1.0, on_feature(hint, "embeding"))))},
            "distilled cannot be trained on these data: .*embeding.*Did you mean 'embedding'",
        ),
        ({"alone": recipe("alone", SOFT)}, "alone cannot be trained on these data: .*teacher"),
        (
            {"alone": Recipe(tiny.network(6, classes=7), LABELS, lambda updates: optax.sgd(0.1), 1, 128)},
            "alone cannot be trained .*network must return a logit for each of the 10 classes",
        ),
    ],
)
def test_what_is_wrong_is_said_before_any_training_and_leaves_nothing(changes, message, tmp_path, no_training):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(_seeds, "fit", lambda *arguments, **keywords: pytest.fail("a network was trained"))


def test_a_folder_in_use_is_never_written_into(finished, tmp_path, no_training):
    before = sorted(path.name for path in finished.rglob("*"))
    with pytest.raises(FileExistsError, match=r"out is not empty.*--resume"):
        run(finished, seeds=2)
    with pytest.raises(ValueError, match=r"--resume needs the settings.*alone_recipe\['epochs'\] was 2 and is now 3\."):
        run(finished, seeds=2, resume=True, alone=recipe("alone", epochs=3))
    other = replace(DATA[0], labels=DATA[0].labels[::-1].copy())
    with pytest.raises(ValueError, match=r"--resume needs the settings.*data_digests\['train'\] was '\w+' and is now"):
        run(finished, seeds=2, resume=True, data=[other, DATA[1]])
    with pytest.raises(ValueError, match="needs at least the 2 seeds of before; got 1"):
        run(finished, seeds=1, resume=True)
    assert sorted(path.name for path in finished.rglob("*")) == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=r"holds no run that could be gone on with.*thesis\.txt"):
            run(foreign, resume=resume)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(NotADirectoryError, match="out must be a folder"):
        run(file)
    assert file.read_text() == "mine"
    for path in (tmp_path / ("x" * 300), f"{tmp_path}/a\0b"):
        with pytest.raises(ValueError, match="out must be a path that this system takes; got "):
            run(path)
    with pytest.raises(PermissionError, match="out cannot be written to: /proc/kdjax"):
        run("/proc/kdjax")


def with_other(phase, **changes):
    return {phase: replace(RECIPES[phase], **changes)}


def squashed(params, model_state, inputs, *, train, rng=None):
    outputs, model_state = NETWORKS[6][1](params, model_state, inputs, train=train, rng=rng)
    return outputs._replace(logits=jax.numpy.tanh(outputs.logits)), model_state


def of_many(numbers):
    """A term with more numbers than its text shows."""

    def weighted(numbers, student, teacher, batch):
        return cross_entropy(student, teacher, batch) * numbers[batch["labels"]]

    return weighted_sum(labels=(1.0, jax.tree_util.Partial(weighted, numbers)))


def test_other_numbers_in_a_large_array_are_refused_at_a_resumption(tmp_path, monkeypatch):
    def stop(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(_seeds, "fit", stop)
    ones, out = jax.numpy.ones(2_000), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, alone=recipe("alone", of_many(ones)))
    with pytest.raises(KeyboardInterrupt):
        run(out, resume=True, alone=recipe("alone", of_many(ones)))
    with pytest.raises(
        ValueError, match=r"--resume needs the settings.* programs\[\"alone's numbers\"\] was '\w+' and is now '\w+'\.$"
    ):
        run(out, resume=True, alone=recipe("alone", of_many(ones.at[1_000].set(2))))


@pytest.mark.parametrize(
    "changes",
    [
        with_other("alone", optimizer=lambda updates: optax.sgd(0.2, momentum=0.9)),
        with_other("distilled", network=(NETWORKS[6][0], squashed)),
        with_other(
            "teacher",
            network=(lambda rng, x: jax.tree.map(lambda one: 2 * one, NETWORKS[16][0](rng, x)), NETWORKS[16][1]),
        ),
        with_other("alone", objective=weighted_sum(labels=(lambda step: 0.5, cross_entropy))),
        {"preprocess": lambda inputs: unit_range(inputs) / 2},
        {"config": {"teacher": "of one's own"}, **with_other("teacher", epochs=3)},
    ],
    ids=["optimizer", "network", "start", "schedule", "preprocess", "epochs beside a setting of that name"],
)
def test_a_resumption_that_would_compute_something_else_is_refused(changes, finished, no_training):
    with pytest.raises(ValueError, match="--resume needs the settings"):
        run(finished, seeds=2, resume=True, **changes)


def test_a_given_teacher_must_stay_the_same(finished, tmp_path, no_training):
    teachers = [finished / f"seed-{seed}" / "teacher" / "weights" for seed in range(2)]
    with pytest.raises(pytest.fail.Exception):  # stopped where training would begin
        run(tmp_path / "out", given_teacher=teachers[0])
    for other in (teachers[1], None):
        with pytest.raises(ValueError, match="given_teacher_digest was"):
            run(tmp_path / "out", given_teacher=other, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of 1 or more; got 0"),
        ({"batch_size": -8}, "batch_size must be a whole number of 1 or more; got -8"),
    ],
)
def test_a_recipe_that_is_none_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPES["alone"], **change)


# In a process without the tests' checker of types, which is there before them.
OF_A_WRONG_TYPE = """
import optax
from kdjax import cross_entropy, weighted_sum
from kdjax.data import load
from kdjax.runs import Recipe, compare

data = load("digits", "test")
good = {
    "network": (lambda rng, inputs: None, lambda params, model_state, inputs, *, train, rng=None: None),
    "objective": weighted_sum(labels=(1.0, cross_entropy)),
    "optimizer": lambda updates: optax.sgd(0.1), "epochs": 1, "batch_size": 8,
}
recipes = dict.fromkeys(("teacher", "alone", "distilled"), Recipe(**good))

for call, name, value in (
    (Recipe, "network", 1), (Recipe, "network", (1, 2)), (Recipe, "objective", cross_entropy),
    (Recipe, "optimizer", optax.sgd(0.1)), (Recipe, "epochs", 1.5), (Recipe, "batch_size", "8"),
    (compare, "data", data), (compare, "data", "digits"), (compare, "data", [(1, 2), (3, 4)]), (compare, "cache", None),
    (compare, "dtype", 32), (compare, "print_every", "x"), (compare, "seeds", True),
):
    try:
        call(**(good | {name: value}) if call is Recipe else {"out": "out", "data": [data] * 2, **recipes, name: value})
        print(name, value, "no error")
    except ValueError as error:
        assert str(error).startswith(f"{name} must be"), error
"""


def test_what_is_of_a_wrong_type_is_named(tmp_path):
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", OF_A_WRONG_TYPE]
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert not [*tmp_path.iterdir()]


def test_two_runs_never_share_a_folder(finished):
    with (finished / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="out is being written by another process"):
            run(finished, seeds=2, resume=True)


def test_a_teacher_of_another_kind_is_refused(finished, tmp_path, no_training):
    student = finished / "seed-0" / "distilled" / "weights"
    with pytest.raises(ValueError, match=r"trained with model 'dense teacher'.*says 'dense distilled'"):
        run(tmp_path / "out", given_teacher=student)
    save_weights(tmp_path / "unsaid", weights_in(student, "distilled"))
    with pytest.raises(ValueError, match="kernel"):
        run(tmp_path / "out", given_teacher=tmp_path / "unsaid")
    teacher = finished / "seed-0" / "teacher" / "weights"
    with pytest.raises(ValueError, match=r"trained with data 'other'; .* says 'digits'"):
        run(tmp_path / "out", given_teacher=teacher, data=[replace(one, name="other") for one in DATA])
    weights = weights_in(teacher, "teacher")
    weights.params["Dense_0"]["bias"] = weights.params["Dense_0"]["bias"].at[3].set(np.nan)
    save_weights(tmp_path / "broken", weights)
    with pytest.raises(ValueError, match=r"teacher must hold finite numbers.*\['Dense_0'\]\['bias'\]"):
        run(tmp_path / "out", given_teacher=tmp_path / "broken")
    assert not (tmp_path / "out").exists()


def test_a_teacher_with_a_mask_in_its_model_state_is_taken_and_one_with_nan_there_is_not(tmp_path):
    init, apply = NETWORKS[6]

    def begun(number):
        return lambda key, inputs: Weights(init(key, inputs).params, {"mask": jnp.full(3, number)})

    def kept(params, model_state, inputs, **others):
        return apply(params, {}, inputs, **others)[0], model_state

    for number in (-np.inf, np.nan):
        trainer = prepare(replace(recipe("teacher"), network=(begun(number), kept)), 128)
        weights = begun(number)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
        if np.isnan(number):
            with pytest.raises(ValueError, match=r"teacher must hold finite numbers.*\.model_state\['mask'\]"):
                given_teacher(weights, trainer, {}, jnp.zeros((1, 8, 8, 1)))
        else:
            assert given_teacher(weights, trainer, {}, jnp.zeros((1, 8, 8, 1))) is weights


def test_inputs_that_are_not_finite_are_refused_where_updates_would_be_skipped(tmp_path):
    """Each update that sees one would be left out, and in the end all of them."""
    inputs = np.ones((8, 8, 8, 1), np.float32)
    part = {"inputs": inputs, "labels": np.zeros(8, int)}
    broken = part | {"inputs": np.where(np.arange(8)[:, None, None, None] == 5, np.nan, inputs)}
    with pytest.raises(ValueError, match=r"data must be finite where diverged is 'skip'.* 1 examples .* example 5"):
        run(tmp_path / "run", data=[broken, part], diverged="skip")
    assert not (tmp_path / "run").exists()

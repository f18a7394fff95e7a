"""Bad input, and the words of the error that each must have. Run without jaxtyping's checker, as users run it.

Each row is an expression and what its ValueError must say.
"""

# ruff: noqa: E501, F401 (rows are read side by side, and their expressions use the names)

import re
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

import kdjax
from kdjax import data, export, losses, metrics, on_feature, on_logits, schedules, weighted_sum
from kdjax.batches import epoch_indices, evaluation_indices, take
from kdjax.caching import cache_teacher, choose_place
from kdjax.checkpoints import open_run
from kdjax.training import (
    accumulate,
    augmented,
    clip_while,
    data_mesh,
    freeze,
    init_state,
    jit_step,
    make_epoch,
    make_eval_step,
    make_evaluation,
    make_mean_teacher_step,
    make_mutual_step,
    make_train_step,
    process_rows,
    replicate,
    shard_batch,
    split_batch,
    train_only,
    weights_of,
)
from kdjax.training.phases import Phase, plan
from kdjax.training.sweeps import make_sweep_step, stack, unstack

FOLDER = Path(tempfile.mkdtemp())
for split in ("train", "test"):
    for name in ("a", "b"):
        (FOLDER / split / name).mkdir(parents=True)
        Image.fromarray(np.full((4, 4), 9, np.uint8)).save(FOLDER / split / name / "0.png")
HEADS = ("student.hidden", "student.head", "teacher.hidden", "teacher.head")
Z, MESH, SGD = jnp.ones((2, 3)), data_mesh(jax.devices()[:1]), optax.sgd(0.1)
PICTURES = f"folder:{FOLDER}"

WEIGHTS, GOAL = kdjax.Weights(jnp.ones((3, 3)), {}), weighted_sum(labels=(1.0, kdjax.cross_entropy))
SPOILT = kdjax.Weights(jnp.full((3, 3), jnp.nan), {})
BATCH = {"inputs": Z, "labels": jnp.array([0, 1])}
EPOCH = make_epoch(lambda state, teacher, objective, batch: (state, {"loss": jnp.ones(())}))


def network(params, model_state, inputs, *, train, rng=None):
    return inputs @ params, model_state


def stream(label=0, **changes):
    examples = [{"inputs": np.ones(2, np.float32), "labels": label}] * 4
    with data.open_stream(examples, **{"batch_size": 2, "seed": 0} | changes) as batches:
        return next(batches)


ROWS = [
    *((f"losses.soft_target_kl(Z, Z, temperature={value})", f"temperature must (be|lie) .*; got {words}") for value, words in (
        ("'4'", "'4'"), ("None", "None"), ("4j", "4j"), ("[4.0]", r"shape \(1,\)"), ("0", "0"), ("-1.0", "-1.0"),
        ("float('nan')", "nan"), ("float('inf')", "inf"), ("[4.0, 2.0, 1.0]", r"shape \(3,\)"), ("True", "True"),
        ("{}", "{}"), ("Z", r"shape \(2, 3\)"), ("1e30", ".*"), ("lambda step: 4.0", ".*"))),
    *((f"on_logits(losses.soft_target_kl, temperature={value})", f"temperature must be .*got {words}") for value, words in (
        ("'4'", "'4'"), ("None", "None"), ("4j", "4j"), ("0.0", "0.0"), ("-2", "-2"), ("float('nan')", "nan"))),
    *((f"{call}", f"{name} must be a function, .*; got {got}") for call, name, got in (
        ("make_train_step(Z, None, SGD)", "student_apply", "shape"), ("make_train_step(None, None, SGD)", "student_apply", "None"),
        ("make_train_step('net', None, SGD)", "student_apply", "'net'"), ("make_train_step({}, None, SGD)", "student_apply", "a dict"),
        ("make_train_step(network, Z, SGD)", "teacher_apply", "shape"), ("make_train_step(network, 3, SGD)", "teacher_apply", "3"),
        ("make_eval_step(Z)", "apply", "shape"), ("make_evaluation(None)", "apply", "None"), ("make_evaluation(Z)", "apply", "shape"),
        ("make_epoch(Z)", "step", "shape"), ("make_epoch(None)", "step", "None"), ("jit_step(Z)", "step", "shape"),
        ("jit_step(None)", "step", "None"))),
    ("jit_step(print, compiler_options=3)", "compiler_options must be XLA's options by name; got 3"),
    *((call, f"optimizer must be an optax transformation, .*; got {got}") for call, got in (
        ("make_train_step(network, None, None)", "None"), ("make_train_step(network, None, 0.1)", "0.1"),
        ("make_train_step(network, None, optax.sgd)", "a function"), ("make_train_step(network, None, Z)", "shape"),
        ("init_state(kdjax.Weights(Z, {}), None, jax.random.key(0))", "None"),
        ("init_state(kdjax.Weights(Z, {}), 0.1, jax.random.key(0))", "0.1"))),
    ("init_state(Z, SGD, jax.random.key(0))", r"weights must be Weights\(params, model_state\); got a"),
    ("init_state({}, SGD, jax.random.key(0))", "weights must be Weights.*; got a dict"),
    ("weights_of(Z)", "state must be a TrainState"),
    ("make_epoch(lambda *a: a, steps_per_call=0)", "steps_per_call must be a whole number of 1 or more; got 0"),
    ("make_epoch(lambda *a: a, steps_per_call=1.5)", "steps_per_call must be a whole number of 1 or more; got 1.5"),
    ("shard_batch({}, MESH)", r"batch must hold arrays \[batch, …\].*; got {}"),
    ("split_batch({}, 2)", r"batch must hold arrays \[batch, …\].*; got {}"),
    ("data_mesh([])", "devices must hold one device or more; got none"),
    *((f"split_batch({{'a': Z}}, {value})", f"devices must be a whole number of 1 or more; got {value}") for value in (
        "0", "-1", "1.5", "True", "None", "'2'")),
    ("split_batch({'a': Z}, 3)", "batch must divide by devices = 3; got 2 examples"),
    *((f"data.load(PICTURES, 'train', size={value})", f"size must be height and width .*; got {re.escape(value)}") for value in (
        "2.5", "True", "0", "-1", "(2,)", "'4'", "(2, 2.5)", "(True, 2)", "(3, -1)", "[]")),
    *((f"data.load(PICTURES, 'train', channels={value})", f"channels must be 1 for grey or 3 for RGB; got {value}") for value in (
        "True", "1.0", "2", "0", "'3'", "-1")),
    *((f"data.load({value}, 'train')", f"source must be .*; got {re.escape(value)}") for value in (
        "3", "None", "b'digits'", "['digits']", "'digit'", "'npz'", "'digits:x'", "''")),
    *((f"data.load('digits', {value})", f"split must be one of .*; got {value}") for value in ("'dev'", "None", "0", "''")),
    *((f"data.load('digits', 'train', {name}={value})", f"{name} must be a folder's path, or None; got {value}") for name in (
        "data_dir", "prepared_dir") for value in ("3", "1.5", "True")),
    *((f"stream({value})", "labels must be whole class numbers") for value in (
        "1.7", "1.0", "-5", "float('nan')", "'a'", "2**31", "True", "None", "[0.5]")),
    *((f"stream({name}={value})", f"{name} must (be|lie) .*; got {re.escape(value)}") for name, value in (
        ("batch_size", "2.5"), ("batch_size", "True"), ("batch_size", "'2'"), ("batch_size", "5"), ("batch_size", "0"),
        ("batch_size", "-1"), ("batch_size", "None"), ("seed", "1.5"), ("seed", "None"), ("seed", "'0'"), ("start", "1.5"),
        ("start", "-1"), ("workers", "1.5"), ("workers", "-1"), ("workers", "True"), ("ahead", "0"), ("ahead", "True"),
        ("stop", "'9'"), ("part", "3"), ("part", "(0, 1.5)"), ("part", "(1, 1)"), ("part", "(0, 3)"), ("part", "(-1, 2)"))),
    *((f"epoch_indices(4, {value}, seed=0, epoch=0)", f"batch_size must .*; got {value}") for value in (
        "2.5", "True", "'2'", "None", "0", "5", "-1")),
    *((f"epoch_indices({value}, 1, seed=0, epoch=0)", f"examples must be a whole number of 1 or more; got {value}") for value in (
        "2.5", "True", "'2'", "None", "0")),
    *((f"epoch_indices(4, 2, seed={value}, epoch=0)", f"seed must be a whole number .*; got {value}") for value in (
        "1.5", "'a'", "None", "True", "'0'")),
    *((f"epoch_indices(4, 2, seed=0, epoch={value})", f"epoch must be a whole number of 0 or more; got {value}") for value in (
        "1.5", "-1", "'a'", "None", "True")),
    *((f"evaluation_indices({value}, 2)", f"examples must be a whole number of 1 or more; got {value}") for value in (
        "2.5", "'4'", "0", "None")),
    *((f"evaluation_indices(4, {value})", f"batch_size must be a whole number of 1 or more; got {value}") for value in (
        "2.5", "'4'", "0", "None", "True")),
    *((f"take({{'a': Z}}, {value})", f"indices must be an array of whole numbers; got {words}") for value, words in (
        ("[0, 1]", "a list"), ("None", "a NoneType"), ("0", "a int"), ("jnp.array([0.5])", "dtype float32"),
        ("jnp.array([True])", "dtype bool"))),
    ("take({'a': Z}, jnp.array([2]))", "indices must lie between 0 and 1, of 2 examples; got 2"),
    ("take({'a': Z}, np.array([-1]))", "indices must lie between 0 and 1, of 2 examples; got -1"),
    ("take(Z, jnp.array([0]))", "arrays must be arrays by name"),
    ("take({'a': jnp.ones(())}, jnp.array([0]))", r"arrays\['a'\] must have an axis of examples; got shape \(\)"),
    *((f"choose_place({value}, memory=1, disk=1)", f"size must be a whole number of 0 or more; got {value}") for value in (
        "-1", "'a'", "1.5", "None")),
    *((f"one_step({value})", words) for value, words in (
        ("{}", r'batch must have "inputs"; got \[\]'), ("Z", "batch must be arrays by name.*; got shape"),
        ("None", "batch must be arrays by name.*; got None"), ("{'inputs': Z}", r"batch must have .labels.; it has \['inputs'\]"),
        ("BATCH, None", "objective must be one of weighted_sum; got None"),
        ("BATCH, kdjax.cross_entropy", "objective must be one of weighted_sum; got a function"),
        ("BATCH | {'labels': jnp.array([0.5, 1.0])}", r'batch\["labels"\] must be whole class numbers of shape \(2,\); got .* float32'), ("BATCH | {'labels': jnp.arange(3)}", r'batch\["labels"\] must have one row for each example .*; got shape \(3,\)'),
        ("BATCH | {'labels': ['a', 'b']}", r'batch\["labels"\] must be whole class numbers .*; got \[.a., .b.\]'), ("BATCH | {'mask': jnp.ones(3)}", r'batch\["mask"\] must have one row for each example .*; got shape \(3,\)'))),
    *((f"make_train_step(network, None, SGD)({value}, None, GOAL, BATCH)", f"state must be a TrainState.*; got {words}")
      for value, words in (("None", "None"), ("WEIGHTS", "a Weights"), ("{}", "a dict"))),
    *((f"make_evaluation(network)({value}, BATCH)", rf"weights must be Weights\(.*; got {words}") for value, words in (
        ("None", "None"), ("Z", "shape"), ("{}", "a dict"))),
    *((f"make_evaluation(network)(WEIGHTS, {value})", words) for value, words in (
        ("None", "arrays must be arrays by name, or an iterable of batches; got a NoneType"), ("3", "arrays must be arrays by name, or an iterable of batches; got a int"),
        ("{'inputs': Z}", "batch must have"), ("BATCH, batch_size=0", "batch_size must be a whole number of 1 or more; got 0"),
        ("BATCH, batch_size=1.5", "batch_size must be a whole number of 1 or more; got 1.5"))),
    *((f"EPOCH(None, None, None, {value})", words) for value, words in (
        ("3", "arrays must be arrays by name"), ("[]", "arrays must give one batch at least"), ("BATCH", "order must say"),
        ("BATCH, [[0.5]]", "order must be whole numbers"), ("BATCH, [[7]]", "order must lie between 0 and 1"),
        ("BATCH, [0, 1]", "order must be whole numbers"), ("{'a': jnp.ones(())}, [[0]]", "arrays must have one row"))),
    *((f"weighted_sum({value})", words) for value, words in (
        ("", r"needs at least one term, as name=\(weight, term\); got none"), ("a=3", r"a must be a pair \(weight, term\) .*; got 3"),
        ("a=(1.0, 3)", r"a must be a pair \(weight, term\) whose term is a function; got \(1.0, 3\)"),
        ("a=('x', kdjax.cross_entropy)", "the weight of a must be a number or a function of the step; got 'x'"),
        ("a=(None, kdjax.cross_entropy)", "the weight of a must be a number or a function of the step; got None"),
        ("a=(float('nan'), kdjax.cross_entropy)", "the weight of a must be a finite number; got nan"),
        ("a=kdjax.cross_entropy", r"a must be a pair \(weight, term\) .*; got <function"))),
    *((f"on_feature({value})", words) for value, words in (
        ("losses.hint, 3", "name must be a feature's name; got 3"), ("losses.hint, 'a', teacher=3", "teacher must be .*; got 3"),
        ("3, 'a'", "loss must be a function, .*; got 3"), ("losses.hint, None", "name must be a feature's name; got None"))),
    ("on_logits(3)", "loss must be a function, .*; got 3"),
    ("on_logits(losses.soft_target_kl, temprature=3)", "soft_target_kl must be one of temperature; got 'temprature'. Did you mean"),
    *((f"make_sweep_step({value})", "step must be a function") for value in ("Z", "None")),
    *((f"make_mean_teacher_step({value})", words) for value, words in (
        ("Z, 0.9", "step must be a function"), ("lambda *a: a, 2.0", "decay must lie between 0.0 and 1.0; got 2.0"))),
    *((f"make_mutual_step({value})", "applies must be two networks or more") for value in (
        "[], []", "network, SGD", "[network], [SGD]")),
    ("make_mutual_step([network, network], [SGD])", "optimizers must be one for each of the 2 networks; got 1"),
    *((f"augmented({value})", words) for value, words in (
        ("Z, lambda key, batch: batch", "step must be a function"), ("lambda *a: a, None", "augment must be a function"))),
    *((f"plan({value})", words) for value, words in (
        ("", "phases must be one or more"), ("3", "phases must be of Phase"), ("Phase('a', 0, GOAL, SGD)", "steps of phase 'a'"),
        ("Phase('a', 1.5, GOAL, SGD)", "steps of phase 'a'"), ("Phase('a', 1, GOAL, SGD), Phase('a', 1, GOAL, SGD)", "phases must have a name each of their own; got 'a' twice"))),
    *((f"accumulate({value})", words) for value, words in (
        ("SGD, 0", "batches must be a whole number of 1 or more; got 0"), ("SGD, 1.5", "batches must be a whole .*; got 1.5"), ("None, 2", "optimizer must be an optax transformation"))),
    ("freeze(SGD, 3)", "patterns must be regular expressions; 3 is none"),
    ("freeze(None, 'a')", "optimizer must be an optax transformation"),
    *((f"data_mesh({value})", f"devices must be of jax.devices.*; got {words}") for value, words in (
        ("3", "3"), ("[1, 2]", "1"), ("'cpu'", "'cpu'"))),
    *((f"{call}({{'a': Z}}, {value})", "mesh must be a mesh") for call in ("shard_batch", "replicate") for value in ("None", "2")),
    *((f"shard_batch({value}, MESH)", "batch must hold arrays") for value in ("None", "3", "{'a': jnp.ones(())}")),
    *((f"process_rows({value})", f"batch_size must .*; got {words}") for value, words in (
        ("0", "0"), ("1.5", "1.5"), ("3, process_index=0, process_count=2", "3"))),
    *((f"init_state(WEIGHTS, SGD, {value})", f"rng must be a key, as of jax.random.key.*; got {value}") for value in (
        "None", "0", "1.5")),
    *((f"cache_teacher({value})", words) for value, words in (
        ("Z, WEIGHTS, Z", "Apply must be a function"), ("network, Z, Z", r"teacher must be Weights\(.*; got"), ("network, WEIGHTS, None", "inputs must hold"),
        ("network, WEIGHTS, Z, batch_size=0", "batch_size must be a whole number of 1 or more; got 0"), ("network, WEIGHTS, Z, top_k=0", "top_k must be a whole number of 1 or more; got 0"),
        ("network, WEIGHTS, Z, features='x'", r"features must be among the teacher's, \[\]; got 'x'"), ("network, WEIGHTS, Z, dtype='int9'", "dtype must be one of float32, .*; got 'int9'"),
        ("network, WEIGHTS, jnp.ones((0, 3))", "inputs must hold one example at least"))),
    *((f"opened_run(keep={value})", f"keep must be a whole number of 1 or more; got {value}") for value in ("0", "1.5", "True")),
    *((f"metrics.mean_interval({value})", f"values must be .*numbers.*; got {words}") for value, words in (
        ("[]", r"\[\]"), ("'abc'", "'abc'"), ("[1.0, 'a']", r"\[1.0, 'a'\]"), ("None", "None"))),
    ("metrics.paired_difference([1.0], [1.0, 2.0])", r"first and second must have the same shape; got \(1,\) .* and \(2,\)"),
    ("stack([])", "trees must hold one pytree a student, and one student at least; got none"),
    ("stack(Z)", "trees must be a list of pytrees, one for each student; got a"),
    ("unstack(None)", r"tree must have one leading axis in all leaves, \[students, …\]; got \[\]"),
    *((f"named_classes({value})", f"class_names must be .*; got {words}") for value, words in (
        ("'ab'", "'ab'"), ("None", "None"), ("3", "3"), ("()", r"\(\)"), ("('a', 'a')", r"\('a', 'a'\)"))),
    *((f"schedules.linear({value})", words) for value, words in (
        ("0, 1, steps=0", "steps must be a finite number greater than 0; got 0"),
        ("'a', 1, steps=5", "start must be a finite number; got 'a'"), ("None, 1, steps=5", "start must be a .*; got None"))),
    *((f"freeze(SGD{value})", words) for value, words in (("", "patterns must name at least one part"), (", '('", r"patterns must be regular expressions; '\(' is none"))),
    ("train_only(SGD)", "patterns must name at least one part"),
    *((f"clip_while({value}, 1.0, above=0.5)", f"max_norm must be a finite number greater than 0; got {value}") for value in (
        "0", "-1.0", "'1'", "None")),
    ("make_dataset_of(np.zeros((2, 3)), np.array([0, 2]))", "labels must lie in 0..1"),
    ("make_dataset_of(np.zeros((2, 3)), np.array([0.0, 1.0]))", "labels must be whole class numbers; got dtype float64"),
    ("make_dataset_of(np.full((2, 3), np.nan), np.array([0, 1]))", "inputs must be finite in float32; 2 of 2"),
    ("make_dataset_of(np.zeros(2), np.array([0, 1]))", "inputs must be images"),
    ("make_dataset_of(np.zeros((2, 3)), np.array([0]))", r"labels must have shape \(2,\)"),
    ("make_dataset_of(np.zeros((2, 3), object), np.array([0, 1]))", "inputs must be uint8 or floating-point; got dtype object"),
    # on_heads, detached places, USKD, weighted sums over a vocabulary
    ("kdjax.on_heads(losses.soft_target_kl)", "on_heads needs two places, .* got 0 for soft_target_kl"),
    ("kdjax.on_heads(losses.soft_target_kl, *HEADS[:2])", "soft_target_kl needs student, teacher"),
    ("kdjax.on_heads(losses.soft_target_kl, *HEADS, chunk=0)", "chunk must be a whole number of 1 or more; got 0"),
    ("kdjax.on_heads(losses.soft_target_kl, *HEADS, chunk=2.5)", "chunk must be a whole number of 1 or more; got 2.5"),
    ("kdjax.on_heads(losses.soft_target_kl, *HEADS, temperature=-1.0)", "temperature must be a finite number greater than 0; got -1.0"),
    ("kdjax.on_heads(losses.dist, *HEADS)", "got dist, which compares tokens"),
    ("kdjax.on_heads(losses.soft_target_kl, 'hidden', *HEADS[1:])", "A place must be .*; got 'hidden' for soft_target_kl"),
    ("kdjax.on_outputs(losses.uskd_target, 'student.logits', 'itself.logits')", 'A place must be "student.NAME", "detached.NAME"'),
    ("kdjax.scaled(on_logits(losses.hint), by='detached')", "by must be a place"),
    ("losses.uskd_target(Z, Z[:1], jnp.array([0, 1]))", "student and teacher must have the same shape"),
    ("losses.uskd_target(Z, Z, jnp.array([0.0, 1.0]))", "labels must be whole class numbers"),
    ("losses.uskd_non_target(Z, Z, Z[:, :2], jnp.array([0, 1]))", "student and weak must have the same shape"),
    ("losses.linear_weighted_sum(losses.soft_target_kl, jnp.ones(3), Z, Z.T, Z, Z.T)", r"weights must have one number for each token, shape \(2,\)"),
    ("losses.linear_weighted_sum(losses.soft_target_kl, jnp.ones(2), Z, Z.T, Z)", "teacher_hidden and teacher_head must be given together"),
    ("losses.linear_weighted_sum(losses.soft_target_kl, jnp.ones(2), Z, Z, Z, Z.T)", "student_hidden and student_head must have the same dim"),
    ("losses.linear_weighted_sum(losses.dist, jnp.ones(2), Z, Z.T, Z, Z.T)", "got dist, which compares tokens"),
    ("losses.linear_weighted_sum(losses.soft_target_kl, jnp.ones(2), Z, Z.T, Z, Z.T, chunk=1, temperature=jnp.ones(1))", "temperature must have one number for all"),
    # exports
    ("export.to_stablehlo(FOLDER / 'a.hlo', network, WEIGHTS, Z, class_names=['one'])", r"class_names must be 3 different words, .*; got \['one'\]"),
    ("export.to_stablehlo(FOLDER / 'a.hlo', network, WEIGHTS, Z, platforms=())", "platforms must name at least one; got none"),
    ("export.to_stablehlo(FOLDER / 'a.hlo', network, WEIGHTS, Z, platforms=('phone',))", "platforms must be one of"),
    ("export.to_stablehlo(FOLDER / 'a.hlo', network, WEIGHTS, jnp.ones((2, 5)))", "example and weights must be the network's"),
    *((f"export.{call}", "weights must be finite; NaN or infinity is in params") for call in (
        "to_safetensors(FOLDER / 'n.safetensors', SPOILT)", "to_stablehlo(FOLDER / 'n.hlo', network, SPOILT, Z)")),
    ("export.to_safetensors(FOLDER / 'a.safetensors', kdjax.Weights({}, {}))", "weights must have at least one array; got none"),
    ("metrics.latency(network, WEIGHTS, Z, seconds=0.0)", "seconds must be a finite number greater than 0; got 0.0"),
]  # fmt: skip


def one_step(batch, goal=GOAL):
    return make_train_step(network, None, SGD)(init_state(WEIGHTS, SGD, jax.random.key(0)), None, goal, batch)


def opened_run(keep):
    with open_run(FOLDER / "run", keep=keep) as run:
        return run


def named_classes(names):
    return data.make_dataset(np.ones((2, 3)), np.array([0, 1]), class_names=names, name="own", split="train")


def make_dataset_of(inputs, labels):
    return data.make_dataset(inputs, labels, class_names=("no", "yes"), name="own", split="train")


def main() -> None:
    wrong = []
    for expression, words in ROWS:
        try:
            wrong.append(f"{expression}: no error, but {eval(expression)!r:.80}")
        except ValueError as error:
            if not re.search(words, str(error)):
                wrong.append(f"{expression}: {error}; wanted: {words}")
        except Exception as error:  # whatever is no ValueError is wrong
            wrong.append(f"{expression}: {type(error).__name__}: {error}")
    print(f"{len(ROWS)} bad inputs")
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()

"""One process of several: trains, saves, restores and evaluates with the others, and writes down what it saw.

`test_processes.py` starts it with the name of a task, ``training``, ``files`` or ``compared``, and does the same in one
process with the same functions.
"""

import functools
import json
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import optax
import tiny
from networks import BATCH, batch, student, teacher, teacher_weights

from kdjax import (
    Weights,
    _trees,
    computed,
    connectors,
    cross_entropy,
    init_state,
    losses,
    make_eval_step,
    make_train_step,
    on_feature,
    on_logits,
    weighted_sum,
)
from kdjax.batches import epoch_indices, evaluation_indices, take
from kdjax.checkpoints import load_weights, open_run, restore_state, save_state, save_weights
from kdjax.data import load
from kdjax.runs import Recipe, compare
from kdjax.training import data_mesh, jit_step, process_rows, replicate, shard_batch, shard_largest_axis

HALF, END = 10, 20
EXAMPLES = 5 * BATCH - 3
OPTIMIZER = optax.sgd(1e-3, momentum=0.9)
BESIDE = {"crd": connectors.contrast("embedding", size=EXAMPLES, dim=8, negatives=12)}
OBJECTIVE = weighted_sum(
    labels=(0.5, cross_entropy),
    soft=(0.5, on_logits(losses.soft_target_kl, temperature=4.0)),
    relations=(3.0, on_feature(losses.rkd_distance, "embedding")),
    crd=(0.1, computed("crd")),
)


@functools.cache
def all_examples():
    return jax.device_get(batch(EXAMPLES)) | {"indices": np.arange(EXAMPLES)}


@functools.cache
def first_weights():
    """The student's, with BatchNorm and dropout, and beside it the bank of contrastive representation distillation."""
    inputs = all_examples()["inputs"]
    own = jax.jit(student()[0])(jax.random.key(0), inputs)
    networks = (student()[1], own, teacher()[1], teacher_weights())
    return connectors.init_beside(BESIDE, jax.random.key(1), *networks, inputs)


def first_state():
    return init_state(first_weights(), OPTIMIZER, jax.random.key(2))


def small_state():
    """What needs no network and compiles at once; a typed key, NaN and a leaf that four devices cannot split."""
    params = {"kernel": np.arange(24.0, dtype=np.float32).reshape(3, 8), "odd": np.array([np.nan, 1], np.float32)}
    return init_state(Weights(params, {}), OPTIMIZER, jax.random.key(2))


def compiled_step():
    return jit_step(make_train_step(student()[1], teacher()[1], OPTIMIZER, connectors=BESIDE))


def train(step, state, taught, mesh, folder=None):
    """From the state's own step to the last; saves on the way, and trains on while the files are being written."""
    steps = EXAMPLES // BATCH
    for number in range(int(state.step), END):
        rows = epoch_indices(EXAMPLES, BATCH, seed=0, epoch=number // steps)[number % steps, process_rows(BATCH)]
        part = jax.device_get(take(all_examples(), rows))
        state, _ = step(state, taught, OBJECTIVE, shard_batch(part, mesh))
        if folder is not None and number + 1 == HALF:
            with open_run(folder) as run:
                save_state(run, HALF, state, {"step": HALF})
    return state


def evaluate(weights, mesh):
    step, whole, totals = jax.jit(make_eval_step(student()[1])), all_examples(), {}
    indices, mask = evaluation_indices(EXAMPLES, BATCH)
    for rows, real in zip(np.asarray(indices), np.asarray(mask), strict=True):
        mine = process_rows(BATCH)
        part = jax.tree.map(lambda array, rows=rows[mine]: np.asarray(array)[rows], whole) | {"mask": real[mine]}
        sums = step(weights, shard_batch(part, mesh))
        totals = {name: totals.get(name, 0.0) + float(value) for name, value in sums.items()}
    return totals


def restored(folder, like):
    with open_run(folder) as run:
        return restore_state(run, like)


def numbers(tree):
    """Leaves by path, on this host."""
    return {name: np.asarray(leaf) for name, leaf in _trees.by_path(tree).items()}


def message(call):
    try:
        call()
    except (ValueError, FileExistsError, RuntimeError) as error:
        return str(error)
    return "no error"


def training(folder, index):
    mesh, step = data_mesh(), compiled_step()
    whole, taught = replicate((first_state(), teacher_weights()), mesh)
    state = train(step, whole, taught, mesh, folder / "two")
    np.savez(folder / f"two-{index}.npz", **numbers(state.params))
    seen = {"evaluation": evaluate(connectors.student_of(state), mesh)}

    resumed, seen["record"] = restored(folder / "one", replicate(first_state(), mesh))
    np.savez(folder / f"one-two-{index}.npz", **numbers(train(step, resumed, taught, mesh).params))
    return seen


def files(folder, index):
    mesh, seen = data_mesh(), {}
    whole = replicate(small_state(), mesh)
    split = shard_largest_axis(whole, mesh, at_least=0)
    seen["split"] = [name for name, leaf in _trees.by_path(split).items() if not leaf.is_fully_replicated]
    with open_run(folder / "split") as run:
        save_state(run, END, split)
    weights = Weights(split.params, split.model_state)
    save_weights(folder / "weights", weights)
    for old, new in (
        (split, restored(folder / "split", split)[0]),
        (weights, load_weights(folder / "weights", weights)),
        (split, restored(folder / "split", whole)[0]),
        (whole, restored(folder / "one", whole)[0]),
        (whole, restored(folder / "one", split)[0]),
    ):
        assert all(leaf.sharding.device_set == set(jax.devices()) for leaf in jax.tree.leaves(new))
        assert same(new, old)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        seen["gone back to"] = restored(folder / "damaged", whole)[1]
    seen["warned"] = [str(one.message) for one in warned if "Going back" in str(one.message)]

    seen["twice"] = message(lambda: save_weights(folder / "weights", weights))
    seen["different"] = message(lambda: replicate({"same": np.ones(2), "own": np.full(2, index)}, mesh))
    odd = small_state()._replace(model_state={"own": np.full(2, index)})
    with open_run(folder / "odd") as run:
        seen["different in a state"] = message(lambda: save_state(run, 1, odd))
    seen["private"] = message(lambda: restored(folder / f"private-{index}", whole))
    rows = shard_batch({"labels": np.arange(4) + 4 * index}, mesh)["labels"]
    seen["rows"] = [rows.shape, sorted(int(one) for part in rows.addressable_shards for one in part.data)]
    seen["uneven"] = message(lambda: shard_batch({"labels": np.arange(3)}, mesh))
    return seen


def compared(folder, index):
    """Teacher, alone and distilled, by one call; a folder that is taken is refused by both."""
    results = small_comparison(folder / "run", devices="all", cache=("memory", "off")[len(list(folder.glob("off")))])
    taken = message(lambda: small_comparison(folder / "run", devices="all"))
    return {"seeds": results["seeds"], "taken": taken}


def small_comparison(out, **settings):
    from rich.console import Console

    data = [load("digits", split) for split in ("train", "test")]
    recipe = functools.partial(Recipe, optimizer=lambda updates: optax.sgd(0.3), epochs=1, batch_size=256)
    labels = weighted_sum(labels=(1.0, cross_entropy))
    soft = weighted_sum(labels=(0.5, cross_entropy), soft=(0.5, on_logits(losses.soft_target_kl, temperature=4.0)))
    networks = {width: tiny.network(width) for width in (12, 6)}
    recipes = {"teacher": recipe(networks[12], labels), "alone": recipe(networks[6], labels)}
    recipes["distilled"] = recipe(networks[6], soft)
    return compare(out, data=data, seeds=1, console=Console(quiet=True), **recipes, **settings)


def same(first, second):
    pairs = zip(_trees.by_path(first).values(), _trees.by_path(second).values(), strict=True)
    return all(_trees.digest(_trees.on_host(one)) == _trees.digest(_trees.on_host(other)) for one, other in pairs)


if __name__ == "__main__":
    task, address, count, index, folder = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.distributed.initialize(address, num_processes=int(count), process_id=int(index))
    seen = {"training": training, "files": files, "compared": compared}[task](Path(folder), int(index))
    Path(folder, f"seen-{index}.json").write_text(json.dumps(seen))

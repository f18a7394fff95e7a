"""What this version of kdjax wrote and every later one must open, in tests/saved; and trainings that go on from it.

python tests/kept.py write tests/saved/format_2     a new format's examples; those of older ones stay as they are
python tests/kept.py finish new.npz                 goes on from the kept states, and writes the weights in the end
python tests/kept.py agree old.npz new.npz          of two versions of JAX on one machine: the law of docs/reliability.md
"""

import io
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import jax
import networks
import numpy as np
import optax
import tiny
from comparisons import RECIPES
from rich.console import Console

from kdjax import cross_entropy, init_state, make_train_step, on_logits, weighted_sum
from kdjax.batches import epoch_indices
from kdjax.caching import cache_teacher
from kdjax.checkpoints import open_run, restore_state, save_state, save_weights
from kdjax.data import load, unit_range
from kdjax.export import to_safetensors, to_stablehlo
from kdjax.losses import soft_target_kl
from kdjax.runs import compare
from kdjax.training import make_epoch

SAVED = Path(__file__).parent / "saved"
EXAMPLES, BATCH, BEFORE, EPOCHS = 256, 32, 2, 6
# How far a network may drift in these epochs between two versions of JAX, in parts of its weights' norm. JAX 0.10.2 and
# 0.12.0.1 multiply matrices alike from 32 columns on, and narrower ones in another order.
BOUNDS = {"dense": 0.0, "narrow": 1e-6, "convolutional": 1e-5}
CLASSES = 32  # for ten digits
TEACHER = tiny.network(32, CLASSES)
STUDENTS = {
    "dense": tiny.network(32, CLASSES),
    "narrow": tiny.network(6, CLASSES),
    "convolutional": networks.student(classes=CLASSES),
}
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
OBJECTIVE = weighted_sum(labels=(0.3, cross_entropy), soft=(0.7, on_logits(soft_target_kl, temperature=4.0)))


def arrays():
    data = load("digits", "train")
    return {"inputs": unit_range(data.inputs[:EXAMPLES]), "labels": data.labels[:EXAMPLES]}


def teacher_like():
    return jax.eval_shape(TEACHER[0], jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))


def start(kind):
    init, _ = STUDENTS[kind]
    return init_state(init(jax.random.key(0), arrays()["inputs"][:1]), OPTIMIZER, jax.random.key(1))


def trained(kind, state, teacher, first, last):
    """The student's state after the epochs from `first` to `last`, taught by the kept teacher."""
    epoch = make_epoch(make_train_step(STUDENTS[kind][1], TEACHER[1], OPTIMIZER))
    for number in range(first, last):
        order = np.asarray(epoch_indices(EXAMPLES, BATCH, seed=0, epoch=number))
        state, _ = epoch(state, teacher, OBJECTIVE, arrays(), order)
    return state


def opened(name, into):
    """The kept folder of that name, unpacked."""
    with tarfile.open(SAVED / name) as stored:
        stored.extractall(into, filter="data")
    return into


def resumed(kind, folder, teacher):
    """A kept state, and what comes of it in the end."""
    with open_run(folder) as run:
        state, record = restore_state(run, start(kind))
    return record, trained(kind, state, teacher, record["epoch"], EPOCHS)


def flat(state):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves((state.params, state.model_state)) if leaf.size])


def drift(old, new):
    """The distance of two networks' weights, in parts of the norm."""
    return float(np.linalg.norm(old - new) / np.linalg.norm(old))


def write(place):
    teacher = TEACHER[0](jax.random.key(7), arrays()["inputs"][:1])
    ends = {}
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch)
        save_weights(made / "weights", teacher, description={"model": "two layers", "accuracy": 0.75})
        for kind in STUDENTS:
            with open_run(made / kind) as run:
                state = trained(kind, start(kind), teacher, 0, BEFORE)
                save_state(run, BEFORE * EXAMPLES // BATCH, state, {"epoch": BEFORE, "seen": None})
            ends[kind] = flat(trained(kind, state, teacher, BEFORE, EPOCHS))
        cache_teacher(TEACHER[1], teacher, arrays()["inputs"], path=made / "cache")
        comparison(made / "comparison")
        for part in [*made.rglob("report*"), *made.rglob("figures")]:  # made anew from the rest
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        place.mkdir(parents=True)
        for folder in sorted(made.iterdir()):
            with tarfile.open(place / f"{folder.name}.tar.xz", "w:xz") as stored:
                stored.add(
                    folder, ".", filter=lambda one: one.replace(uid=0, gid=0, uname="", gname="", mtime=0, deep=False)
                )
    to_safetensors(place / "teacher.safetensors", teacher, description={"model": "two layers"})
    to_stablehlo(place / "teacher.stablehlo", TEACHER[1], teacher, arrays()["inputs"][:2], platforms=("cpu",))
    np.savez_compressed(place / "ends.npz", logits=logits(teacher), **ends)


def comparison(out, **changes):
    data = [arrays(), {name: one[:64] for name, one in arrays().items()}]
    settings = {"data": data, "seeds": 1, **RECIPES, "config": {"made_by": "tests/kept.py"}, **changes}
    return compare(out, console=Console(file=io.StringIO()), **settings)


def logits(teacher):
    outputs, _ = TEACHER[1](*teacher, arrays()["inputs"][:8], train=False)
    return np.asarray(outputs.logits)


def finish(file):
    from kdjax.checkpoints import load_weights

    newest = sorted(SAVED.iterdir())[-1].name
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        teacher = load_weights(opened(f"{newest}/weights.tar.xz", place / "weights"), teacher_like())
        kinds = {kind: resumed(kind, opened(f"{newest}/{kind}.tar.xz", place / kind), teacher) for kind in STUDENTS}
    np.savez(file, **{kind: flat(state) for kind, (_, state) in kinds.items()})
    print(f"JAX {jax.__version__}: {', '.join(kinds)} from epoch {BEFORE} to {EPOCHS}")


def agree(old, new):
    with np.load(old) as one, np.load(new) as other:
        found = {kind: (one[kind], other[kind]) for kind in STUDENTS}
    for kind, pair in found.items():
        unequal = int(np.sum(pair[0].view(np.uint32) != pair[1].view(np.uint32)))
        print(f"{kind}: {unequal} of {pair[0].size} numbers differ; the distance is {drift(*pair):.3g} of the norm")
    for kind, bound in BOUNDS.items():
        assert drift(*found[kind]) <= bound, f"the {kind} network's weights differ by more than {bound:g} of their norm"


if __name__ == "__main__":
    {"write": write, "finish": finish, "agree": agree}[sys.argv[1]](*map(Path, sys.argv[2:]))

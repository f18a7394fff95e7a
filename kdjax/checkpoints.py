"""Weights and training states on disk by Orbax: written whole or not at all, and proved byte by byte when read.

Both kinds of checkpoint are a folder of two Orbax items: ``arrays``, the leaves by path (``params/Conv_0/kernel``), and
``record``, a JSON document of the caller's entries, each leaf's shape, dtype and blake2b digest, and a digest of its
own. Orbax alone would hand back a flipped bit as a number, and cast another dtype. The structure of the tree comes from
`like` when it is read, so any pytree that optax makes is good here.

Several processes: all call each function here, with a folder that all see, and the first one writes. A leaf may lie on
the devices of many, whole or split: it is gathered in each process's memory and has the digest of the whole array, so
that a run of two processes goes on in one, or in four.
"""

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from kdjax import _checkpoint_contents as contents
from kdjax import _checkpoint_folders as folders
from kdjax import _checks, _processes
from kdjax._checkpoint_folders import DamagedError as DamagedError
from kdjax._files import check_writable, digest_of_json, set_aside
from kdjax._types import Tree, Weights


def save_weights(
    path: str | os.PathLike[str], weights: Weights, *, description: Mapping[str, Any] | None = None
) -> None:
    """Saves one network's arrays: a teacher, or a finished student.

    Args:
      path: the folder to make; folders missing above it are made too.
      weights: arrays of any dtype, typed PRNG keys among them.
      description: what to say of them, such as model, data and accuracy; NaN becomes None, as in `kdjax.runs.as_json`.

    Raises:
      FileExistsError: if something is at `path`; it stays as it was.
      PermissionError: if the folder that is to hold `path` cannot be written.
      ValueError: naming leaves that are not the same in every process; or if the path has brackets.

    Example:
      >>> import jax, jax.numpy as jnp, tempfile
      >>> weights = Weights({"kernel": jnp.ones((2, 3))}, {})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_weights(f"{folder}/teacher", weights, description={"model": "tiny"})
      ...     read_description(f"{folder}/teacher")
      ...     load_weights(f"{folder}/teacher", jax.eval_shape(lambda: weights)).params["kernel"].shape
      {'model': 'tiny'}
      (2, 3)
    """
    target = Path(path).absolute()
    if _processes.anywhere(target.exists()):
        raise FileExistsError(f"path must be free for new weights; {target} exists already.")
    folders.check_name(target)
    check_writable(target.parent)
    content = contents.to_write(weights, description or {})
    try:
        with contents.named(target), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(target, args=content)
    except BaseException:
        if jax.process_index() == 0:  # Orbax leaves what it had written
            shutil.rmtree(target.with_name(f"{target.name}.orbax-checkpoint-tmp"), ignore_errors=True)
        raise


def load_weights(path: str | os.PathLike[str], like: Weights) -> Weights:
    """Loads what `save_weights` saved, and proves it to be the same bits in the architecture that is wanted.

    Args:
      path: the folder.
      like: the wanted tree, of arrays or of `jax.ShapeDtypeStruct`, as `jax.eval_shape` gives it.

    Returns:
      Weights in the structure of `like`, each leaf on the devices of its counterpart.

    Raises:
      FileNotFoundError: if there are no weights at `path`.
      DamagedError: a ValueError that names the leaf whose bytes have changed.
      ValueError: naming leaves that are missing, unexpected, or of another shape or dtype.
    """
    source = folders.existing(path)
    record = contents.record_of(source)
    if other := folders.differences(source, record["leaves"], like):
        raise ValueError(other)
    return contents.rebuilt(contents.arrays_of(source, record["leaves"]), record["leaves"], like)


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the description that `save_weights` was given, and none of the arrays.

    Raises:
      FileNotFoundError: if there are no weights at `path`.
      DamagedError: if it is not what was written.
    """
    return contents.record_of(folders.existing(path))["entries"]


@contextmanager
def open_run(folder: str | os.PathLike[str], *, keep: int = 2) -> Iterator[ocp.CheckpointManager]:
    """Opens a folder of training states, one a step, for `save_state` and `restore_state`.

    States are written in the background; leaving the block waits for the last of them, and raises if it failed.

    Args:
      folder: made if it is missing. What a killed save left in it is removed.
      keep: the number of steps that stay; with 2, a damaged last one leaves one to go back to.

    Yields:
      Orbax's manager of the folder.

    Raises:
      PermissionError: if the folder cannot be made or written.
      ValueError: if its path has brackets.

    Example:
      >>> import jax, jax.numpy as jnp, tempfile
      >>> from kdjax import TrainState
      >>> state = TrainState(jnp.int32(7), {"kernel": jnp.ones(3)}, {}, (), jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder, open_run(folder) as run:
      ...     save_state(run, 7, state, {"epoch": 1})
      ...     restored, record = restore_state(run, state)
      >>> int(restored.step), record
      (7, {'epoch': 1})
    """
    _checks.whole("keep", keep, 1)
    root = Path(folder).absolute()
    folders.check_name(root)
    check_writable(root)
    folders.check_plain(root)
    for child in root.iterdir() if _processes.is_first() else ():
        # Orbax would take it for the latest step, and then silently save none before that number.
        if child.name.isdigit() and child.is_dir() and not any(child.iterdir()):
            child.rmdir()
    _processes.wait()
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    with contents.named(root):
        run = ocp.CheckpointManager(root, options=options)
    try:
        yield run
    finally:
        with contents.named(root):
            run.close()


def save_state(run: ocp.CheckpointManager, step: int, state: Tree, record: Mapping[str, Any] | None = None) -> None:
    """Saves all that training needs to go on from `step`, in the background.

    Orbax copies the state first: it may be changed, or donated to the next step, at once. An earlier save that failed
    raises here.

    Args:
      run: from `open_run`.
      step: the number of updates made; greater than that of every step saved before.
      state: the training state: a `TrainState`, or what any of `kdjax.training`'s steps has for one.
      record: JSON beside it, such as epoch and accuracy so far; NaN becomes None, as in `kdjax.runs.as_json`.

    Raises:
      ValueError: if `step` is not after the last one; or naming leaves that are not the same in every process.
    """
    last = run.latest_step()
    if last is not None and step <= last:
        raise ValueError(f"step must be greater than the last one saved in {run.directory}, {last}; got {step}.")
    content = contents.to_write(state, record or {})
    with contents.named(run.directory):
        run.save(step, args=content)


def restore_state(run: ocp.CheckpointManager, like: Tree) -> tuple[Tree, dict[str, Any]] | None:
    """Restores the latest state that is still, bit by bit, what was saved.

    A damaged step is warned of and set aside under the name ``damaged-<step>``, and the one before it is tried.

    Args:
      run: from `open_run`.
      like: a state of the wanted structure, shapes, dtypes and devices, such as the one training would start from; or a
        function of the step that gives one, where states of different steps differ, as those of phases do.

    Returns:
      The state, each leaf on the devices of its counterpart in `like`, and the record; None if no state was ever saved.

    Raises:
      DamagedError: if there are states and all are damaged.
      ValueError: naming leaves that are missing, unexpected, or of another shape or dtype; or if the processes do not
        see the same folder.
    """
    run.wait_until_finished()
    steps = sorted(run.all_steps(), reverse=True)
    if _processes.differing({"steps": digest_of_json(steps)}):
        where = f"process {jax.process_index()} finds the steps {steps} in {run.directory}, another process others"
        raise ValueError(f"folder must be one that all processes see; {where}.")
    damaged: dict[int, DamagedError] = {}
    for step in steps:
        source = Path(run.directory) / str(step)
        own = like(step) if callable(like) else like
        other, arrays = "", {}
        try:
            record = contents.record_of(source)
            if not (other := folders.differences(source, record["leaves"], own)):
                arrays = contents.arrays_of(source, record["leaves"])
        except DamagedError as error:
            damaged[step] = error
        # All go back together, or the processes would go on from different steps.
        if _processes.anywhere(step in damaged):
            damaged.setdefault(step, DamagedError(f"The checkpoint {source} cannot be read by another process."))
            continue
        if other:
            raise ValueError(other)
        state = contents.rebuilt(arrays, record["leaves"], own)
        for number, reason in damaged.items():
            warnings.warn(f"{reason} Going back from step {number} to step {step}.", RuntimeWarning, stacklevel=2)
            if _processes.is_first():
                set_aside(source.with_name(str(number)))
        if damaged:
            _processes.wait()
            run.reload()
        return state, record["entries"]
    if damaged:
        raise DamagedError(f"No state in {run.directory} is whole. {' '.join(map(str, damaged.values()))}")
    return None

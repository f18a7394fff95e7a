"""Batches of data larger than memory: read ahead by worker processes through Grain, and put on the device in time.

The place in the data is one number, the count of batches so far. It is the `TrainState`'s ``step``, so a checkpoint holds
it already; nothing of Grain's is saved.
"""

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from kdjax import _checks
from kdjax.batches import epoch_indices
from kdjax.data.examples import Indexable

Place = Callable[[dict[str, np.ndarray]], Any]
Plan = Callable[[int], dict[str, np.ndarray]]

# What `epoch_indices` depends on beside its arguments: told to the workers, so that they draw the same order.
INT32 = np.iinfo(np.int32)
SETTINGS = ("jax_default_prng_impl", "jax_enable_x64", "jax_threefry_partitionable")


@contextmanager
def open_stream(
    examples: Indexable,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    stop: int | None = None,
    preprocess: Callable[[Array], Array] | None = None,
    place: Place = jax.device_put,
    part: tuple[int, int] = (0, 1),
    workers: int = 0,
    ahead: int = 2,
) -> Iterator[Iterator[dict[str, Array]]]:
    """Open an endless stream of training batches, the same as those of `epoch_indices` and `take`, bit for bit.

    Batch n is the batch ``n % steps`` of epoch ``n // steps``, with ``steps = len(examples) // batch_size``: a pure function
    of (seed, n), whatever the number of workers. **The remainder sits the epoch out**, other examples each epoch. To go
    on after a restart, say ``start=int(state.step)``.

    Workers are new Python processes, so a script that has any must keep its own doing under ``if __name__ ==
    "__main__":``. They live as long as the block, over all epochs, run no code of the accelerator's, and are gone
    when the block is left, however it is left. They hand batches over in shared memory (on Linux ``/dev/shm``).

    Args:
      examples: any sequence whose items hold ``"inputs"`` and ``"labels"``, or TFDS's ``"image"`` and ``"label"``: of
        `open_examples`, of `tfds.data_source`, or your own; with workers it must be possible to pickle it.
      batch_size: how many make a batch.
      seed: of the order.
      start: the number of the first batch.
      stop: the number of the batch before which to end; never where None.
      preprocess: a pure function of each example, such as `unit_range`, from a batch of inputs to float32; it runs
        jitted where `place` put the batch, so uint8 travels.
      place: from a batch of NumPy arrays to one of JAX arrays, such as ``partial(shard_batch, mesh=mesh)``.
      part: (i, n): the i-th of n equal, consecutive parts of every batch, for one process of n.
      workers: the number of processes that read; 0 reads in a thread of this process.
      ahead: how many batches wait on the device, and how many in each worker.

    Yields:
      An iterator of ``{"inputs": …, "labels": int32 [batch], "indices": int32 [batch]}``.

    Raises:
      ValueError: for numbers that make no batch, examples of different shapes, and, from a worker, what reading raised.
      RuntimeError: if a worker process died.
      ImportError: if Grain is not installed.

    Example:
      From the second batch on, as after a checkpoint of step 1, into the next epoch:

      >>> from kdjax.batches import epoch_indices
      >>> from kdjax.data import open_examples
      >>> train = open_examples("digits", "train")
      >>> with open_stream(train, 400, seed=0, start=1, stop=3) as batches:
      ...     read = [batch["indices"] for batch in batches]
      >>> [rows.shape for rows in read]
      [(400,), (400,)]
      >>> bool((read[0] == epoch_indices(len(train), 400, seed=0, epoch=0)[1]).all())
      True
    """
    count = len(examples)
    _checks.whole("batch_size", batch_size, 0)
    _checks.whole("seed", seed, -(2**31))
    if not 1 <= batch_size <= count:
        raise ValueError(f"batch_size must lie between 1 and the {count} examples there are; got {batch_size}.")
    chosen = partial(_training_rows, count, batch_size, seed)
    with _opened(examples, chosen, batch_size, start, stop, preprocess, place, part, workers, ahead) as batches:
        yield batches


@contextmanager
def open_evaluation(
    examples: Indexable,
    batch_size: int,
    *,
    preprocess: Callable[[Array], Array] | None = None,
    place: Place = jax.device_put,
    part: tuple[int, int] = (0, 1),
    workers: int = 0,
    ahead: int = 2,
) -> Iterator[Iterator[dict[str, Array]]]:
    """Open a stream in which every example occurs exactly once, in order, as in `evaluation_indices`.

    The last batch is filled up with example 0, and ``"mask"``, float32 [batch], is 0 there and 1 elsewhere: count only what
    the mask marks, as `make_eval_step` does.

    Args:
      examples: as for `open_stream`, and likewise the rest.
      batch_size: how many make a batch; it may exceed the number of examples.
      preprocess: a pure function of each example.
      place: from NumPy arrays to JAX arrays.
      part: (i, n): the i-th of n equal parts of every batch.
      workers: the number of processes that read.
      ahead: how many batches wait on the device, and how many in each worker.

    Yields:
      An iterator of ``{"inputs": …, "labels": …, "indices": …, "mask": …}``.

    Raises:
      ValueError, RuntimeError, ImportError: as `open_stream`.
    """
    _checks.whole("the number of examples", len(examples), 1)
    _checks.whole("batch_size", batch_size, 1)
    chosen = partial(_evaluation_rows, len(examples), batch_size)
    stop = -(-len(examples) // batch_size)
    with _opened(examples, chosen, batch_size, 0, stop, preprocess, place, part, workers, ahead) as batches:
        yield batches


def _training_rows(count: int, batch_size: int, seed: int, number: int) -> dict[str, np.ndarray]:
    epoch, step = divmod(number, count // batch_size)
    settings = tuple(getattr(jax.config, name) for name in SETTINGS)
    return {"indices": _order(count, batch_size, seed, epoch, settings)[step]}


@lru_cache(maxsize=2)
def _order(count: int, batch_size: int, seed: int, epoch: int, settings: tuple[Any, ...]) -> np.ndarray:
    """Of one epoch under these settings of JAX, in all its steps."""
    return np.asarray(epoch_indices(count, batch_size, seed=seed, epoch=epoch))


def _evaluation_rows(count: int, batch_size: int, number: int) -> dict[str, np.ndarray]:
    position = number * batch_size + np.arange(batch_size, dtype=np.int32)
    real = position < count
    return {"indices": np.where(real, position, 0), "mask": real.astype(np.float32)}


@contextmanager
def _opened(
    examples: Indexable,
    chosen: Plan,
    batch_size: int,
    start: int,
    stop: int | None,
    preprocess: Callable[[Array], Array] | None,
    place: Place,
    part: tuple[int, int],
    workers: int,
    ahead: int,
) -> Iterator[Iterator[dict[str, Array]]]:
    """The batches `start` … `stop` - 1 that `chosen` chooses."""
    for name, number, least in (("start", start, 0), ("workers", workers, 0), ("ahead", ahead, 1)):
        _checks.whole(name, number, least)
    if stop is not None:
        _checks.whole("stop", stop, 0)
    if not (isinstance(part, tuple) and len(part) == 2 and all(type(one) is int for one in part)):
        raise ValueError(f"part must be (i, n), two whole numbers; got {part!r}.")
    end = sys.maxsize if stop is None else stop
    if end < start:
        raise ValueError(f"stop must be at least start; got start {start} and stop {stop}.")
    if not 0 <= part[0] < part[1] or batch_size % part[1]:
        raise ValueError(f"part must be (i, n) with i in 0..n - 1 and n dividing batch_size {batch_size}; got {part}.")
    numbers = _grain().MapDataset.range(start, end).map(partial(_batch, examples, chosen, part))
    reader = iter(_read_ahead(numbers, workers, ahead))
    batches = _placed(reader, place, None if preprocess is None else jax.jit(preprocess), ahead)
    try:
        yield batches
    finally:
        batches.close()
        reader.close()


def _grain() -> Any:
    try:
        import grain
        from absl import flags
    except ImportError as missing:
        raise ImportError("Streaming needs Grain: pip install 'kdjax[data]'.") from missing
    # Grain asks absl's flags for its settings, and absl refuses before a command line was parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return grain


def _read_ahead(numbers: Any, workers: int, ahead: int) -> Any:
    grain = _grain()
    # Grain's own defaults, 16 threads and 500 elements, are meant for single examples; here an element is a batch.
    threads = 0 if workers else 1
    dataset = numbers.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead * threads))
    if not workers:
        return dataset
    settings = {name: getattr(jax.config, name) for name in SETTINGS}
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
    return dataset.mp_prefetch(options, worker_init_fn=partial(_begin, settings))


def _begin(settings: Mapping[str, Any], worker: int, workers: int) -> None:
    """A worker's first act: the order of an epoch is drawn by JAX, and the accelerator belongs to the parent."""
    jax.config.update("jax_platforms", "cpu")
    for name, value in settings.items():
        jax.config.update(name, value)


def _batch(examples: Indexable, chosen: Plan, part: tuple[int, int], number: int) -> dict[str, np.ndarray]:
    rows = {name: np.split(values, part[1])[part[0]] for name, values in chosen(number).items()}
    found = [examples[int(index)] for index in rows["indices"]]
    inputs = [np.asarray(each["inputs"] if "inputs" in each else each["image"]) for each in found]
    labels = [
        _label(each["labels"] if "labels" in each else each["label"], int(index))
        for each, index in zip(found, rows["indices"], strict=True)
    ]
    for index, each in zip(rows["indices"], inputs, strict=True):
        if each.shape != inputs[0].shape or each.dtype != inputs[0].dtype:
            raise ValueError(
                f"examples must have one shape and dtype; example {rows['indices'][0]} is {inputs[0].shape} "
                f"{inputs[0].dtype}, and example {index} is {each.shape} {each.dtype}."
            )
    return {"inputs": np.stack(inputs), "labels": np.asarray(labels, np.int32), **rows}


def _label(value: Any, index: int) -> np.ndarray:
    """A label, or labels of one example, as int32; never another number than what was there."""
    array = np.asarray(value)
    known = array.dtype.kind in "iu" and (not array.size or (array.min() >= 0 and array.max() <= INT32.max))
    if not known:
        raise ValueError(
            f"labels must be whole class numbers from 0 to {INT32.max}; example {index} has {value!r:.99}."
        )
    return array.astype(np.int32)


def _placed(
    reader: Iterator[dict[str, np.ndarray]],
    place: Place,
    preprocess: Callable[[Array], Array] | None,
    ahead: int,
) -> Generator[dict[str, Array], None, None]:
    """JAX copies to the device in the background, so that a batch placed `ahead` steps ago is there when it is wanted."""
    waiting: deque[dict[str, Array]] = deque()
    try:
        for batch in reader:
            # Copied, since on CPU JAX would go on using the worker's shared memory, as long as anyone holds the batch.
            placed = place({name: np.array(values) for name, values in batch.items()})
            waiting.append(placed if preprocess is None else placed | {"inputs": preprocess(placed["inputs"])})
            if len(waiting) > ahead:
                yield waiting.popleft()
    except RuntimeError as died:
        if "terminated unexpectedly" not in str(died):
            raise
        raise RuntimeError(
            f"A worker process of the stream died: {died} The system kills a process without a word where memory runs out, "
            "/dev/shm's among it: try fewer workers, a smaller batch_size, or ahead=1."
        ) from died
    yield from waiting

"""Connectors for contrastive losses: embeddings of one dim, and memories of what was seen before."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from kdjax import _checks
from kdjax._types import Number, Outputs, Tree, Weights
from kdjax.connectors._connector import Added, Connector, Seen, key_of, pair_of, read_places
from kdjax.connectors.bricks import apply_layer, at_least_float32, flatten, init_layer
from kdjax.losses import _math, crd, draw_negatives, init_bank


def embeddings(student: str, teacher: str | None = None, *, dim: int = 128, normalize: bool = True) -> Connector:
    """Embeds a feature of each network linearly into one space, for `info_nce`, which keeps embeddings apart.

    Adds ``name`` to both: e = W x + b of the flattened feature, divided by ‖e‖ where told. Both maps are learnt.

    Args:
      student: the name of the student's feature, [batch, …].
      teacher: the name of the teacher's; None: the same.
      dim: of the embeddings.
      normalize: whether they have length 1.

    Returns:
      A `Connector`.

    Raises:
      ValueError: `dim` is not a whole number above 0; later, if a feature is missing.

    Example:
      >>> shapes = [Outputs(None, {"embedding": jax.ShapeDtypeStruct((2, size), jnp.float32)}) for size in (8, 12)]
      >>> weights = embeddings("embedding", dim=5).init(jax.random.key(0), *shapes)
      >>> weights.params["teacher"]["kernel"].shape
      (12, 5)

    Note:
      The teacher's map is learnt too. A loss that is least where both embeddings are constant, such as `hint`,
      `correlation_congruence` or `kernel_congruence`, makes them so: bring the student to the teacher's own feature there,
      by a `regressor`.

    Reference:
      Tian, Krishnan and Isola, Contrastive Representation Distillation, 2020, section 3.1 (the maps g).
      https://arxiv.org/abs/1910.10699
    """
    _checks.whole("dim", dim, 1)
    places = pair_of(student, teacher)

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        return _init_pair(rng, read_places(places, of_student, of_teacher), dim)

    def apply(params: Tree, model_state: Tree, seen: Seen) -> Added:
        pair = read_places(places, seen.student, seen.teacher)
        own, others = _embed(params, pair, normalize)
        return {"": own}, {"": others}, model_state

    return Connector(init, apply, places)


def contrast(
    student: str,
    teacher: str | None = None,
    *,
    size: int,
    dim: int = 128,
    negatives: int = 4096,
    labels: Any = None,
    temperature: Number = 0.07,
    momentum: Number = 0.5,
    warmup: int = 100,
    chunk: int = 512,
) -> Connector:
    """Contrastive representation distillation, whole: embeddings, bank, negatives and loss.

    Adds ``name``, [batch], to the student's features: the value of `kdjax.losses.crd`. The term is ``computed("crd")``.

    The bank is in the connector's model_state, in the training state: it is saved with it, and may be sharded over its
    rows. Negatives are drawn on the device from the step's key. The batch must have ``"indices"``, int [batch]: the
    examples' places in the data set.

    Args:
      student: the name of the student's feature, [batch, …].
      teacher: the name of the teacher's; None: the same.
      size: how many examples the data set has.
      dim: of the embeddings.
      negatives: how many are drawn for each example.
      labels: the class of every example of the data set, int [size]: then no example meets its own class. None leaves out
        the example itself alone.
      temperature: τ > 0, in units of the cosine.
      momentum: how much of a bank's entry stays when its example is seen.
      warmup: how many first batches the normalising constants are averaged over.
      chunk: how many negatives are gathered at a time.

    Returns:
      A `Connector`. Its model_state: ``{"bank": Bank}`` and, with labels, ``"labels"`` and their sorting ``"order"``.

    Raises:
      ValueError: `size`, `dim` or `negatives` is no whole number or too small, `labels` are not whole numbers [size] of
        two classes at least; later, if a feature or the indices are missing, or as `crd` does.

    Example:
      >>> shapes = [Outputs(None, {"embedding": jax.ShapeDtypeStruct((2, size), jnp.float32)}) for size in (8, 12)]
      >>> crd_of = contrast("embedding", size=100, dim=5, negatives=10)
      >>> crd_of.init(jax.random.key(0), *shapes).model_state["bank"].student.shape
      (100, 5)

    Note:
      Common code draws with one class's list for each class, on the host, and keeps the bank in a module's buffers. Under
      `jax.pmap` and `jax.shard_map` every device holds the whole bank, and the new ones are made one by an all-reduce of
      2 · size · dim numbers a step; for a large bank take `jax.jit`, where nothing is, and a bank placed by rows stays so.

    Reference:
      Tian, Krishnan and Isola, Contrastive Representation Distillation, 2020, section 3.1.
      https://arxiv.org/abs/1910.10699
    """
    _checks.whole("size", size, 2)
    _checks.whole("dim", dim, 1)
    _checks.whole("negatives", negatives, 1)
    if labels is not None:
        # A draw of one asks for all that must be true of labels, now and not in the middle of a trace.
        draw_negatives(jax.random.key(0), jnp.zeros(1, int), 1, size, labels=jnp.asarray(labels))
    places = pair_of(student, teacher)

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        first, second = jax.random.split(rng)
        params, _ = _init_pair(first, read_places(places, of_student, of_teacher), dim)
        model_state: dict[str, Any] = {"bank": init_bank(second, size, dim)}
        if labels is not None:
            model_state["labels"] = jnp.asarray(labels)
            model_state["order"] = jnp.argsort(model_state["labels"])
        return Weights(params, model_state)

    def apply(params: Tree, model_state: Tree, seen: Seen) -> Added:
        pair = read_places(places, seen.student, seen.teacher)
        if "indices" not in seen.batch:
            raise ValueError(
                f'batch must have "indices", the examples\' places in the data set; it has {sorted(seen.batch)}.'
            )
        indices = seen.batch["indices"]
        own, others = _embed(params, pair, True)
        classes = {name: model_state[name] for name in ("labels", "order") if name in model_state}
        drawn = draw_negatives(key_of(seen.rng, "a contrast"), indices, negatives, size, **classes)
        values, bank = crd(
            own,
            others,
            indices,
            model_state["bank"],
            drawn,
            temperature=temperature,
            momentum=momentum,
            warmup=warmup,
            chunk=chunk,
        )
        return {"": values}, {}, {**model_state, "bank": bank} if seen.train else model_state

    return Connector(init, apply, places)


def queue(teacher: str, *, size: int) -> Connector:
    """Remembers the teacher's embeddings of past batches, for `kdjax.losses.similarity_distribution`.

    Adds ``name_queue``, [size, dim], to the teacher's features: the last `size` embeddings before this batch, each of
    length 1, in no order. First in, first out. Until as many were seen, random directions fill the rest. The term, with a
    regressor "x" that brings the student to the teacher's dim and the queue named "seed":
    ``on_outputs(similarity_distribution, "student.x", "teacher.x", "teacher.seed_queue", temperatures=(0.2, 0.01))``.

    Args:
      teacher: the name of the teacher's feature, [batch, …], which is flattened.
      size: how many are remembered.

    Returns:
      A `Connector` without parameters. Its model_state: ``queue`` and ``next``, the place that is filled next.

    Raises:
      ValueError: `size` is not a whole number above 0; later, if the feature is missing.

    Example:
      >>> teacher = Outputs(None, {"embedding": jnp.array([[0.0, 2.0]])})
      >>> memory = queue("embedding", size=3)
      >>> weights = memory.init(jax.random.key(0), teacher, teacher)
      >>> _, added, after = memory.apply(*weights, Seen(teacher, teacher, {}, True, None))
      >>> after["queue"][0].tolist(), bool((added["queue"] == weights.model_state["queue"]).all())
      ([0.0, 1.0], True)

    Note:
      Random directions at the start are those of common code. There the batch is put in before it is compared with the
      queue; here its own embeddings come in afterwards, and `similarity_distribution` adds the example's own itself.

    Reference:
      Fang et al., SEED: Self-supervised Distillation for Visual Representation, 2021, section 3.2.
      https://arxiv.org/abs/2101.04731
    """
    _checks.whole("size", size, 1)
    place = f"teacher.{teacher}"

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        (feature,) = read_places([place], of_student, of_teacher)
        _checks.rank_at_least(place, feature, 2, "[batch, ..., channels]")
        directions = _math.unit(jax.random.normal(rng, (size, _length(feature)), jnp.float32), (1,))
        return Weights({}, {"queue": directions, "next": jnp.zeros((), jnp.int32)})

    def apply(params: Tree, model_state: Tree, seen: Seen) -> Added:
        memory, start = model_state["queue"], model_state["next"]
        if not seen.train:
            return {}, {"queue": memory}, model_state
        (feature,) = read_places([place], seen.student, seen.teacher)
        rows = _math.unit(lax.stop_gradient(at_least_float32(flatten(feature))), (1,))
        # Of a batch larger than the queue, what the rest of it would push out again never goes in.
        late = rows[-size:]
        slots = (start + jnp.arange(rows.shape[0] - late.shape[0], rows.shape[0], dtype=jnp.int32)) % size
        new = {"queue": memory.at[slots].set(late.astype(memory.dtype)), "next": (start + rows.shape[0]) % size}
        return {}, {"queue": memory}, new

    return Connector(init, apply, (place,))


def _init_pair(rng: PRNGKeyArray, pair: list[Any], dim: int) -> Weights:
    keys = dict(zip(("student", "teacher"), jax.random.split(rng), strict=True))
    lengths = dict(zip(keys, map(_length, pair), strict=True))
    return Weights({who: init_layer(key, (lengths[who], dim)).params for who, key in keys.items()}, {})


def _embed(
    params: Tree, pair: list[Array], normalize: bool
) -> tuple[Float[Array, "batch dim"], Float[Array, "batch dim"]]:
    own, others = (
        apply_layer(params[who], {}, flatten(feature), train=True)[0]
        for who, feature in zip(("student", "teacher"), pair, strict=True)
    )
    return (_math.unit(own, (1,)), _math.unit(others, (1,))) if normalize else (own, others)


def _length(feature: Any) -> int:
    """Of an example's flattened feature."""
    return math.prod(feature.shape[1:])

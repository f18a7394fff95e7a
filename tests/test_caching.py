"""A teacher's cached outputs: the same numbers as the teacher's own, and never those of another."""

import errno
import json
from pathlib import Path

import dense
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from experiments._networks import make_model
from kdjax import (
    Outputs,
    Weights,
    computed,
    connectors,
    cross_entropy,
    make_train_step,
    on_feature,
    on_outputs,
    weighted_sum,
)
from kdjax.batches import epoch_indices, take
from kdjax.caching import StaleError, _folder, cache_teacher, choose_place, features_of, free_memory
from kdjax.losses import attention_transfer, fsp, rkd_distance, top_k_kl
from kdjax.networks import from_linen
from kdjax.objectives import scaled

_, APPLY = networks.teacher()
TEACHER = networks.teacher_weights()
INPUTS = networks.batch(size=40, seed=3)["inputs"]
FEATURES = ["embedding"]


def said(inputs=INPUTS):
    return APPLY(TEACHER.params, TEACHER.model_state, inputs, train=False)[0]


def test_a_disk_that_has_no_room_for_the_cache_is_told_and_nothing_is_left(tmp_path, monkeypatch):
    """Mapped memory would say so by SIGBUS, which ends the process without a word."""

    def full(descriptor, start, size):
        assert size > 0
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_folder.os, "posix_fallocate", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/cache'"):
        cache_teacher(APPLY, TEACHER, INPUTS, path=tmp_path / "cache")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("batch_size", [7, 40, 500])
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_cache_holds_what_the_teacher_says_of_each_example(tmp_path, batch_size, on_disk):
    path = tmp_path / "deep" / "cache" if on_disk else None
    kept = cache_teacher(APPLY, TEACHER, INPUTS, features=FEATURES, batch_size=batch_size, path=path)["teacher"]
    assert set(kept.features) == {"embedding"}
    np.testing.assert_allclose(kept.logits, said().logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kept.features["embedding"], said().features["embedding"], rtol=1e-5, atol=1e-5)
    if on_disk:
        again = cache_teacher(APPLY, TEACHER, INPUTS, features=FEATURES, batch_size=11, path=path)["teacher"]
        np.testing.assert_array_equal(again.logits, kept.logits)
        assert isinstance(again.logits, np.memmap)
        assert not again.logits.flags.writeable
        assert sorted(file.name for file in path.parent.iterdir()) == ["cache"]


def test_training_on_the_cache_is_training_with_the_teacher_to_the_last_bit(compiled_as_users_do):
    """Both compute the teacher on the very same batches: what differs is only when."""
    step = make_train_step(dense.student(), dense.teacher, dense.optimizer())
    teacher, size = dense.teacher_weights(), 8
    order = np.asarray(epoch_indices(40, size, seed=0, epoch=0))
    shuffled = jax.tree.map(lambda array: array[order.ravel()], dense.batch(size=40, seed=3))
    cached = shuffled | cache_teacher(dense.teacher, teacher, shuffled["inputs"], features=FEATURES, batch_size=size)
    online_step, cached_step = jax.jit(step), jax.jit(step)
    online_state = cached_state = dense.fresh_state()
    for number in range(len(order)):
        rows = np.arange(number * size, (number + 1) * size)
        objective = dense.objective()
        online_state, _ = online_step(online_state, teacher, objective, take(shuffled, rows))
        cached_state, _ = cached_step(cached_state, teacher, objective, take(cached, rows))
    for online, stored in zip(jax.tree.leaves(online_state.params), jax.tree.leaves(cached_state.params), strict=True):
        np.testing.assert_array_equal(online, stored)


def test_the_largest_log_probabilities_alone_may_be_kept():
    kept = cache_teacher(APPLY, TEACHER, INPUTS, top_k=3)
    log_probabilities = np.asarray(jax.nn.log_softmax(said().logits))
    np.testing.assert_array_equal(kept["top_indices"], np.argsort(-log_probabilities, axis=1)[:, :3])
    np.testing.assert_allclose(kept["top_values"], -np.sort(-log_probabilities, axis=1)[:, :3], rtol=1e-5)
    term = on_outputs(top_k_kl, "student.logits", "batch.top_values", "batch.top_indices")
    step = jax.jit(make_train_step(networks.student()[1], None, networks.optimizer()))
    batch = {"inputs": INPUTS} | kept
    _, metrics = step(networks.fresh_state(), None, weighted_sum(soft=(1.0, term)), batch)
    assert metrics["soft"] > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_space_costs_some_digits(tmp_path, dtype):
    kept = cache_teacher(APPLY, TEACHER, INPUTS, dtype=dtype, path=tmp_path / "cache")["teacher"]
    assert kept.logits.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(np.asarray(kept.logits, np.float32), said().logits, rtol=1e-2, atol=1e-2)
    assert (tmp_path / "cache" / "logits.bin").stat().st_size == 40 * 10 * 2


def same_weights_other_program():
    return from_linen(make_model("digits_teacher", widths=(6, 8), hidden=12, padding="SAME"))[1]


def test_another_teacher_other_inputs_or_another_wish_is_refused(tmp_path):
    path = tmp_path / "cache"
    cache_teacher(APPLY, TEACHER, INPUTS, path=path)
    before = (path / "logits.bin").read_bytes()

    def relu_off(params, model_state, inputs, **keywords):
        outputs, model_state = APPLY(params, model_state, inputs, **keywords)
        return Outputs(outputs.logits + 1.0, outputs.features), model_state

    for wanted, message in [
        (lambda: cache_teacher(APPLY, networks.teacher_weights(8), INPUTS, path=path), "teacher's weights are others"),
        (lambda: cache_teacher(APPLY, TEACHER, INPUTS.at[39, 0, 0, 0].add(1e-3), path=path), "inputs are others"),
        (lambda: cache_teacher(APPLY, TEACHER, INPUTS[:39], path=path), "inputs are others, other arrays"),
        (lambda: cache_teacher(relu_off, TEACHER, INPUTS, path=path), "teacher's program is another"),
        (lambda: cache_teacher(APPLY, TEACHER, INPUTS, dtype="float16", path=path), "other arrays are kept"),
        (lambda: cache_teacher(APPLY, TEACHER, INPUTS, features=FEATURES, path=path), "other arrays are kept"),
    ]:
        with pytest.raises(StaleError, match=message):
            wanted()
    assert (path / "logits.bin").read_bytes() == before


def test_damage_is_seen(tmp_path):
    path = tmp_path / "cache"
    cache_teacher(APPLY, TEACHER, INPUTS, path=path)
    data = bytearray((path / "logits.bin").read_bytes())
    data[100] ^= 1
    (path / "logits.bin").write_bytes(data)
    with pytest.raises(StaleError, match="has changed since"):
        cache_teacher(APPLY, TEACHER, INPUTS, path=path)
    (path / "logits.bin").write_bytes(data[:-4])
    with pytest.raises(StaleError, match="has 1596 bytes, and 1600 are wanted"):
        cache_teacher(APPLY, TEACHER, INPUTS, path=path)
    for damaged in ("{", "[]", "null", "[" * 100_000, "1" * 10_000):
        (path / "record.json").write_text(damaged)
        with pytest.raises(StaleError, match=r"cache/record\.json is damaged\. Remove the folder"):
            cache_teacher(APPLY, TEACHER, INPUTS, path=path)


def test_every_changed_byte_of_a_record_is_called_damage_and_never_another_teacher(tmp_path):
    path = tmp_path / "cache"
    cache_teacher(APPLY, TEACHER, INPUTS, path=path)
    whole = (path / "record.json").read_bytes()
    identity = {key: value for key, value in json.loads(whole).items() if key not in ("digests", "record")}
    told = []
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        (path / "record.json").write_bytes(changed)
        try:
            kept = _folder._checked_record(path, identity)
        except StaleError as error:
            told.append(str(error))
        else:  # white space, or the name of the digest of the record itself
            assert {key: kept[key] for key in identity} == identity
            assert kept["digests"] == json.loads(whole)["digests"]
    assert len(told) > 0.8 * len(whole)
    assert all("record.json is damaged" in one for one in told)


def test_nothing_half_written_stays(tmp_path):
    broken = Weights(jax.tree.map(lambda leaf: leaf * jnp.nan, TEACHER.params), TEACHER.model_state)
    with pytest.raises(
        FloatingPointError, match=r"teacher's logits are not all finite as float32, for examples 0 to 6"
    ):
        cache_teacher(APPLY, broken, INPUTS, batch_size=7, path=tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="holds something else"):
        cache_teacher(APPLY, TEACHER, INPUTS, path=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"


@pytest.mark.parametrize("other", ["the same", "another teacher's", "something else"])
def test_who_is_second_to_write_takes_what_the_first_has_written_if_it_is_the_same(tmp_path, monkeypatch, other):
    path, half = tmp_path / "cache", jax.tree.map(lambda leaf: leaf / 2, TEACHER.params)
    its = {"the same": TEACHER, "another teacher's": Weights(half, TEACHER.model_state)}.get(other)

    def beside(file, size):
        """Another process, which is done before this one begins to write."""
        monkeypatch.setattr(_folder, "_allocate", alone)
        if its:
            cache_teacher(APPLY, its, INPUTS, path=path)
        else:
            path.write_text("dear")
        alone(file, size)

    alone = _folder._allocate
    monkeypatch.setattr(_folder, "_allocate", beside)
    if other == "the same":
        kept = cache_teacher(APPLY, TEACHER, INPUTS, path=path)["teacher"].logits
        assert isinstance(kept, np.memmap)
        np.testing.assert_allclose(kept, said().logits, rtol=1e-5, atol=1e-5)
    else:
        error, message = (StaleError, "weights are others") if its else (FileExistsError, "holds something else")
        with pytest.raises(error, match=message):
            cache_teacher(APPLY, TEACHER, INPUTS, path=path)
    assert [file.name for file in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"features": ["stage9"]}, r"features must be among the teacher's, \[.*'stage1'.*\]; got 'stage9'"),
        ({"features": FEATURES, "top_k": 2}, r"features must be empty with top_k.*; got \['embedding'\]"),
        ({"top_k": 11}, "top_k must be at most the teacher's 10 classes; got 11"),
        ({"top_k": 0}, "top_k must be a whole number of 1 or more; got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more; got 0"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16; got 'int8'"),
        ({"dtype": "flaot16"}, "Did you mean"),
    ],
)
def test_what_is_wrong_is_said(keywords, message):
    with pytest.raises(ValueError, match=message):
        cache_teacher(APPLY, TEACHER, INPUTS, **keywords)


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="inputs must hold one example at least"):
        cache_teacher(APPLY, TEACHER, INPUTS[:0])


def test_what_an_objective_reads_of_the_teacher_is_what_has_to_be_kept():
    def own(student, teacher, batch):
        return teacher.features["unseen"].sum(axis=1)

    objective = weighted_sum(
        labels=(1.0, cross_entropy),
        own=(1.0, own),
        maps=(1.0, on_feature(attention_transfer, "stage1", teacher="stage2")),
        flow=(1.0, on_outputs(fsp, "student.stage1", "student.stage2", "teacher.stage1", "teacher.stage3")),
        sure=(1.0, scaled(on_feature(rkd_distance, "embedding"), by="teacher.confidence")),
        soft=(1.0, on_outputs(top_k_kl, "student.logits", "batch.top_values", "batch.top_indices")),
    )
    assert features_of(objective) == ["confidence", "embedding", "stage1", "stage2", "stage3"]
    assert features_of(networks.objective()) == ["embedding"]
    kept = cache_teacher(APPLY, TEACHER, INPUTS, features=features_of(networks.objective()))
    step = make_train_step(networks.student()[1], None, networks.optimizer())
    batch = networks.batch(size=40, seed=3)
    _, metrics = jax.eval_shape(step, networks.fresh_state(), None, networks.objective(), batch | kept)
    assert "relations" in metrics


def test_what_a_connector_reads_has_to_be_kept_and_what_it_makes_has_not():
    objective = weighted_sum(
        hint=(1.0, on_feature(rkd_distance, "hint")),
        logits=(1.0, on_feature(rkd_distance, "own_logits")),
        maps=(1.0, on_feature(attention_transfer, "hinted")),
        crd=(1.0, scaled(computed("crd"), by="student.crd_sure")),
    )
    made = {
        "hint": connectors.regressor("stage1", "stage2"),
        "own": connectors.shared_classifier("embedding", classifier_weights={}),
        "crd": connectors.contrast("embedding", "pooled", size=9),
    }
    assert features_of(objective, made) == ["embedding", "hinted", "pooled", "stage2"]
    assert features_of(objective, {}) == ["hint", "hinted", "own_logits"]


def test_a_term_that_a_connector_computes_needs_the_connectors():
    for term in (computed("crd"), scaled(computed("crd"), by="batch.sure")):
        with pytest.raises(ValueError, match=r"connectors must be those of the step.*the term 'crd'.*; got None"):
            features_of(weighted_sum(labels=(1.0, cross_entropy), crd=(1.0, term)))
    made = features_of(weighted_sum(hint=(1.0, on_feature(rkd_distance, "hint"))))
    with pytest.raises(ValueError, match=r"features must be among the teacher's, \[.*'stage1'.*\]; got 'hint'"):
        cache_teacher(APPLY, TEACHER, INPUTS, features=made)


@pytest.mark.parametrize(
    ("size", "memory", "disk", "place"),
    [
        (0, 0, 0, "memory"),
        (250, 1_000, 0, "memory"),
        (251, 1_000, 502, "disk"),
        (251, 1_000, 501, "off"),
        (10**12, 10**11, 10**13, "disk"),
    ],
)
def test_the_place_is_chosen_by_what_is_free(size, memory, disk, place):
    assert choose_place(size, memory=memory, disk=disk) == place


def test_free_memory_is_what_the_machine_says():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < free_memory() < total
    with pytest.raises(ValueError, match="disk must be a whole number of 0 or more; got -1"):
        choose_place(1, memory=1, disk=-1)

"""What older versions wrote is opened for ever, and trainings go on from it; what a newer one wrote is named as that."""

import json
import shutil
import warnings

import jax
import kept
import numpy as np
import pytest
from comparisons import RECIPES

from kdjax._files import FORMAT, FormatError, digest_of_json
from kdjax._trees import digest
from kdjax.caching import cache_teacher
from kdjax.checkpoints import load_weights, read_description
from kdjax.export import from_safetensors, open_stablehlo
from kdjax.export._student import digest_of_record
from kdjax.runs import open_results, remeasure, write_report
from kdjax.runs.folders import open_folder

FORMATS = sorted(path.name for path in kept.SAVED.iterdir())
# Another processor adds in another order, and so does another JAX.
ANYWHERE = 1e-5


@pytest.fixture(scope="module", params=FORMATS)
def saved(request, tmp_path_factory):
    """The folders of one format, unpacked, and the teacher of all of them."""
    place = tmp_path_factory.mktemp(request.param)
    for file in (kept.SAVED / request.param).glob("*.tar.xz"):
        kept.opened(f"{request.param}/{file.name}", place / file.name.removesuffix(".tar.xz"))
    for name in ("teacher.safetensors", "teacher.stablehlo", "teacher.stablehlo.json", "ends.npz"):
        shutil.copy(kept.SAVED / request.param / name, place / name)
    return place


@pytest.fixture(scope="module")
def teacher(saved):
    return load_weights(saved / "weights", kept.teacher_like())


@pytest.fixture(scope="module")
def ends(saved):
    with np.load(saved / "ends.npz") as arrays:
        return dict(arrays)


def test_weights_are_opened_and_give_the_same_logits(saved, teacher, ends):
    assert read_description(saved / "weights") == {"model": "two layers", "accuracy": 0.75}
    np.testing.assert_allclose(kept.logits(teacher), ends["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", kept.STUDENTS)
def test_a_training_goes_on_from_an_older_state(kind, saved, teacher, ends, tmp_path):
    shutil.copytree(saved / kind, tmp_path / "state")
    record, state = kept.resumed(kind, tmp_path / "state", teacher)
    assert record == {"epoch": kept.BEFORE, "seen": None}
    assert state.step == kept.EPOCHS * kept.EXAMPLES // kept.BATCH
    assert kept.drift(ends[kind], kept.flat(state)) <= ANYWHERE


def test_a_cache_is_used_again(saved, teacher, tmp_path):
    shutil.copytree(saved / "cache", tmp_path / "cache")
    before = (tmp_path / "cache" / "logits.bin").stat()
    cached = cache_teacher(kept.TEACHER[1], teacher, kept.arrays()["inputs"], path=tmp_path / "cache")
    assert (tmp_path / "cache" / "logits.bin").stat().st_mtime_ns == before.st_mtime_ns
    np.testing.assert_allclose(cached["teacher"].logits[:8], kept.logits(teacher), rtol=1e-5, atol=1e-5)


def test_a_comparison_is_measured_again_and_reported(saved, tmp_path):
    shutil.copytree(saved / "comparison", tmp_path / "run")
    inputs = kept.arrays()
    data = [inputs, {name: one[:64] for name, one in inputs.items()}]
    found = remeasure(tmp_path / "run", data=data, tolerance=ANYWHERE, **RECIPES)
    assert len(found) == 8
    assert not [one for one in found if one.problem]
    assert write_report(tmp_path / "run").exists()


def test_a_comparison_goes_on_or_says_that_its_programs_are_others(saved, tmp_path):
    shutil.copytree(saved / "comparison", tmp_path / "run")
    before = json.loads((tmp_path / "run" / "results.json").read_text())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The run in .* began with JAX")
        try:
            results = kept.comparison(tmp_path / "run", resume=True)
        except ValueError as error:  # a later version may compute in another way, and must say so
            assert str(error).count(" was ") == str(error).count("programs[")  # noqa: PT017
            return
    for phase in ("teacher", "alone", "distilled"):
        assert results["seeds"][0][phase] == before["seeds"][0][phase] | {
            "seconds": results["seeds"][0][phase]["seconds"]
        }


def test_exports_are_opened(saved, teacher, ends):
    weights, description = from_safetensors(saved / "teacher.safetensors", kept.teacher_like())
    assert description == {"model": "two layers"}
    assert [digest(np.asarray(one)) for one in jax.tree.leaves(weights)] == [
        digest(np.asarray(one)) for one in jax.tree.leaves(teacher)
    ]
    call, record = open_stablehlo(saved / "teacher.stablehlo")
    assert record["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(teacher.params))
    np.testing.assert_allclose(call(kept.arrays()["inputs"][:8]), ends["logits"], rtol=1e-5, atol=1e-5)


# Formats that this version does not know


def edited(file, number, digest=None):
    """A record of another format, with a digest that is right."""
    record = json.loads(file.read_text())
    own = record.pop(digest[0]) if digest else None
    record[FORMAT] = number
    file.write_text(json.dumps(record | ({digest[0]: digest[1](record)} if own else {})))
    return file


@pytest.mark.parametrize(
    ("number", "words"), [(2, "of a newer one: install that"), ("one", "which is none"), (0, "none")]
)
def test_another_format_is_named_whatever_holds_it(number, words, saved, teacher, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    said = rf"must be of format 1 or older.*{number!r}.*{words}"
    edited(tmp_path / "cache" / "record.json", number, ("record", digest_of_json))
    with pytest.raises(FormatError, match=rf"record\.json {said}"):
        cache_teacher(kept.TEACHER[1], teacher, kept.arrays()["inputs"], path=tmp_path / "cache")
    edited(tmp_path / "comparison" / "results.json", number)
    for read in (write_report, lambda run: open_results(run / "results.json", {})):
        with pytest.raises(FormatError, match=rf"results\.json {said}"):
            read(tmp_path / "comparison")
    config = edited(tmp_path / "comparison" / "config.json", number).read_bytes()
    with (
        pytest.raises(FormatError, match=rf"config\.json {said}"),
        open_folder(tmp_path / "comparison", {}, resume=True),
    ):
        pass
    assert (tmp_path / "comparison" / "config.json").read_bytes() == config
    edited(tmp_path / "teacher.stablehlo.json", number, ("record_sha256", digest_of_record))
    with pytest.raises(FormatError, match=rf"teacher\.stablehlo\.json {said}"):
        open_stablehlo(tmp_path / "teacher.stablehlo")


def test_records_of_before_there_were_numbers_are_opened(saved, teacher, tmp_path):
    shutil.copytree(saved / "cache", tmp_path / "cache")
    record = json.loads((tmp_path / "cache" / "record.json").read_text())
    without = {name: entry for name, entry in record.items() if name not in (FORMAT, "record")}
    (tmp_path / "cache" / "record.json").write_text(json.dumps(without))
    cache_teacher(kept.TEACHER[1], teacher, kept.arrays()["inputs"], path=tmp_path / "cache")
    with open_folder(tmp_path / "run", {"epochs": 3}, resume=False) as folder:
        assert json.loads((folder / "config.json").read_text()) == {FORMAT: 1, "epochs": 3}
        (folder / "config.json").write_text('{"epochs": 3}')
    with open_folder(tmp_path / "run", {"epochs": 3}, resume=True):
        pass


def test_a_report_is_not_written_through_a_link_and_a_damaged_run_is_named(saved, tmp_path):
    shutil.copytree(saved / "comparison", tmp_path / "run")
    (tmp_path / "outside").mkdir()
    (tmp_path / "run" / "report-figures").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="report-figures is a symbolic link that leads out of it"):
        write_report(tmp_path / "run")
    (tmp_path / "run" / "report-figures").unlink()
    (tmp_path / "run" / "seed-0" / "alone" / "metrics.jsonl").write_text('{"epoch": 1, "train": 3, "test": []}\n')
    with pytest.raises(
        ValueError, match=r"run must be the folder of a comparison as it was written; .* one is damaged"
    ):
        write_report(tmp_path / "run")
    assert not list((tmp_path / "outside").iterdir())

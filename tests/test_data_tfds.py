"""Any TFDS data set that lies prepared, read without TensorFlow."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import kdjax.data as data

tfds = pytest.importorskip("tensorflow_datasets")


def prepare(place: Path, features: dict, examples: list[dict], file_format="array_record") -> None:
    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "colours"
        VERSION = tfds.core.Version("1.2.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "validation": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(examples)

    Builder(data_dir=str(place), file_format=file_format).download_and_prepare()


NAMES = tfds.features.ClassLabel(names=["red", "green"])


def pictures(*sizes):
    return [
        {"image": PIL.Image.new("RGB", size, (255, 0, 0) if label == 0 else (0, 255, 0)), "label": label}
        for label, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("name", ["colours", "colours:1.2.0", "colours:1.*.*"])
def test_any_prepared_data_set_of_images_can_be_read(tmp_path, name):
    prepare(tmp_path, {"image": tfds.features.Image(shape=(None, None, 3)), "label": NAMES}, pictures((4, 3), (4, 3)))
    dataset = data.load(f"tfds:{name}", "validation", data_dir=tmp_path)
    assert dataset.inputs.shape == (2, 3, 4, 3)
    assert dataset.class_names == ("red", "green")
    for image, label in zip(dataset.inputs, dataset.labels, strict=True):
        assert image[0, 0].tolist() == [[255, 0, 0], [0, 255, 0]][label]
    with pytest.raises(ValueError, match="has no split 'test'; it has train, validation"):
        data.load(f"tfds:{name}", "test", data_dir=tmp_path)


def test_data_sets_that_are_no_pictures_with_classes_are_refused(tmp_path):
    picture = tfds.features.Image(shape=(None, None, 3))
    prepare(tmp_path / "sizes", {"image": picture, "label": NAMES}, pictures((4, 3), (5, 3)))
    with pytest.raises(ValueError, match=r"all images must have one shape; got \(3, .\, 3\) and \(3, .\, 3\)"):
        data.load("tfds:colours", "train", data_dir=tmp_path / "sizes")

    prepare(tmp_path / "features", {"image": picture, "label": np.int64}, pictures((4, 3)))
    with pytest.raises(
        ValueError, match=r"must have the features 'image' and 'label' .* it has image \(Image\), label"
    ):
        data.load("tfds:colours", "train", data_dir=tmp_path / "features")


def test_what_is_not_prepared_needs_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"'tfds:cifar10' is not prepared in .*a or .*b, and .* needs TensorFlow"
    ):
        data.load("tfds:cifar10", "train", data_dir=tmp_path / "a", prepared_dir=tmp_path / "b")
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_names_that_tfds_cannot_read_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"source must be written tfds:NAME.* tfds:NAME/CONFIG.*got 'tfds:mnist:3'"):
        data.load("tfds:mnist:3", "train", data_dir=tmp_path)


def test_a_record_format_that_needs_tensorflow_is_named(tmp_path):
    prepare(tmp_path, {"image": tfds.features.Image(shape=(None, None, 3)), "label": NAMES}, pictures((4, 3)))
    description = tmp_path / "colours" / "1.2.0" / "dataset_info.json"
    description.write_text(description.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="as tfrecord, which only TensorFlow reads; prepare it again with file_format"):
        data.load("tfds:colours", "train", data_dir=tmp_path)


def test_a_prepared_copy_of_a_stranger_imports_no_module(tmp_path, monkeypatch):
    """TFDS imports what features.json names."""
    prepare(tmp_path, {"image": tfds.features.Image(shape=(None, None, 3)), "label": NAMES}, pictures((4, 3), (4, 3)))
    (file,) = tmp_path.glob("*/*/features.json")
    whole = file.read_text()
    own = "tensorflow_datasets.core.features.image_feature.Image"
    (tmp_path / "evil_of_kdjax.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    hidden = json.dumps({"jsonFeature": {"json": json.dumps({"feature": {"type": "evil_of_kdjax.Image"}})}})
    for content in (
        whole.replace(own, "evil_of_kdjax.Image"),
        whole.replace("pythonClassName", "python_class_name").replace(own, "evil_of_kdjax.Image"),
        json.dumps({"type": "evil_of_kdjax.Image", "content": {}}),
        hidden,
    ):
        assert "evil_of_kdjax" in content
        file.write_text(content)
        for name in ("colours", "colours:1.2.0", "colours:1.*.*"):
            with pytest.raises(
                ValueError, match=r"features\.json names the class 'evil_of_kdjax\.Image', whose module"
            ):
                data.load(f"tfds:{name}", "train", data_dir=tmp_path)
    assert "evil_of_kdjax" not in sys.modules
    file.write_text("{" + whole)
    with pytest.raises(ValueError, match=r"the prepared copy in .*1\.2\.0 is damaged"):
        data.load("tfds:colours", "train", data_dir=tmp_path)

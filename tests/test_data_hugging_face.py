"""The page's way from a Hugging Face data set on disk to `kdjax.data`, where `datasets` is installed."""

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdjax.data import open_stream
from kdjax.data.digits import read_digits

datasets = pytest.importorskip("datasets")
PAGE = (Path(__file__).parents[1] / "docs" / "own-data.md").read_text()
(BLOCK,) = re.findall(r"```py\n(from datasets import .*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the page's block has made of the digits, saved as PNG by `datasets`."""
    folder = tmp_path_factory.mktemp("hugging-face")
    datasets.disable_progress_bars()
    parts = {}
    for split in ("train", "test"):
        digits = read_digits(split)
        columns = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(digits.class_names))}
        pictures = [Image.fromarray(one[..., 0]) for one in digits.inputs[:70]]
        rows = {"image": pictures, "label": digits.labels[:70].tolist()}
        parts[split] = datasets.Dataset.from_dict(rows, features=datasets.Features(columns))
    datasets.DatasetDict(parts).save_to_disk(folder / "hf-digits")
    found: dict = {}
    with contextlib.chdir(folder):
        exec(compile(BLOCK, "own-data.md", "exec"), found)
    return found


def test_the_page_reads_what_was_saved(names):
    for part, split in zip(names["data"], ("train", "test"), strict=True):
        digits = read_digits(split)
        np.testing.assert_array_equal(part.inputs, digits.inputs[:70])
        np.testing.assert_array_equal(part.labels, digits.labels[:70])
        assert part.class_names == digits.class_names


def test_it_is_a_stream_s_examples_as_it_is(names):
    with open_stream(names["found"]["train"].with_format("numpy"), 32, seed=0, stop=2) as batches:
        for batch in batches:
            chosen = np.asarray(batch["indices"])
            np.testing.assert_array_equal(batch["inputs"], names["data"][0].inputs[chosen, ..., 0])
            np.testing.assert_array_equal(batch["labels"], names["data"][0].labels[chosen])

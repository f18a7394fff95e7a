"""Pictures in folders, whole and one at a time; drawn here, and real ones where they are at hand."""

import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import kdjax.data as data

COLOURS = {"cat": (250, 10, 20), "dog": (30, 240, 60)}


def draw(path: Path, colour=(250, 10, 20), size=(6, 4), mode="RGB", **settings) -> Path:
    """A plain picture of width × height, its top left pixel black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = PIL.Image.new("RGB", size, colour)
    picture.putpixel((0, 0), (0, 0, 0))
    picture.convert(mode).save(path, **settings)
    return path


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        for name, colour in COLOURS.items():
            for number in range(count):
                draw(tmp_path / split / name / f"{number}.png", colour)
    return tmp_path


def test_classes_are_sorted_and_pictures_come_as_they_are(folder):
    train, test = (data.load(f"folder:{folder}", split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog")
    assert (train.name, train.split) == (f"folder:{folder}", "train")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.inputs.shape == (6, 4, 6, 3)
    assert train.inputs.dtype == np.uint8
    assert train.inputs[0, 0, 0].tolist() == [0, 0, 0]
    assert train.inputs[4, 3, 5].tolist() == list(COLOURS["dog"])
    assert test.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="has no split 'validation'; it has train, test"):
        data.load(f"folder:{folder}", "validation")


def test_reading_one_at_a_time_gives_the_same(folder):
    whole = data.load(f"folder:{folder}", "train")
    opened = data.open_examples(f"folder:{folder}", "train")
    assert (len(opened), opened.class_names, opened.split) == (6, whole.class_names, "train")
    np.testing.assert_array_equal([each["inputs"] for each in opened], whole.inputs)
    np.testing.assert_array_equal([each["labels"] for each in opened], whole.labels)
    with pytest.raises(IndexError, match=r"has the examples 0\.\.5; got index 6"):
        opened[6]


@pytest.mark.parametrize("name", ["validation", "val"])
def test_validation_has_two_names(folder, name):
    for each in COLOURS:
        draw(folder / name / each / "0.png")
    assert len(data.load(f"folder:{folder}", "validation").labels) == 2
    (folder / ("val" if name == "validation" else "validation")).mkdir()
    with pytest.raises(ValueError, match="holds both validation and val"):
        data.load(f"folder:{folder}", "train")


@pytest.mark.parametrize(
    ("ending", "settings"), [("bmp", {}), ("webp", {"lossless": True}), ("PNG", {}), ("jpeg", {"quality": 100})]
)
def test_all_formats_give_the_same_picture(tmp_path, ending, settings):
    for split in ("train", "test"):
        draw(tmp_path / split / "a" / f"0.{ending}", (200, 200, 200), **settings)
    inputs = data.load(f"folder:{tmp_path}", "train").inputs
    assert inputs.shape == (1, 4, 6, 3)
    assert abs(inputs[0, -1, -1].astype(int) - 200).max() <= 2  # jpeg loses a little


def test_hidden_files_are_skipped_and_nested_ones_found(folder):
    (folder / "train/cat/.DS_Store").write_bytes(b"not a picture")
    (folder / "train/cat/._0.png").write_bytes(b"not a picture")
    (folder / "train/cat/Thumbs.db").write_bytes(b"not a picture")
    (folder / "train/.cache").mkdir()
    (folder / "train/notes.txt").write_text("beside the classes anything else may lie")
    draw(folder / "train/cat/more/deep/0.png")
    draw(folder / "train/cat/.more/0.png")
    assert data.load(f"folder:{folder}", "train").labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_camera_held_upright_is_honoured(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the pixels lie on their side: turn them clockwise to see the picture
    for split in ("train", "test"):
        draw(tmp_path / split / "a" / "0.png", size=(6, 4), exif=exif)
    inputs = data.load(f"folder:{tmp_path}", "train").inputs
    assert inputs.shape == (1, 6, 4, 3)
    assert inputs[0, 0, 3].tolist() == [0, 0, 0]  # what was top left is top right
    assert inputs[0].any(axis=-1).sum() == 23


def test_grey_stays_grey_and_either_can_be_had(tmp_path):
    for split in ("train", "test"):
        draw(tmp_path / split / "a" / "0.png", (250, 10, 20), mode="L")
        draw(tmp_path / split / "a" / "1.png", (250, 10, 20), mode="L")
    assert data.load(f"folder:{tmp_path}", "train").inputs.shape == (2, 4, 6, 1)
    odd = draw(tmp_path / "train" / "a" / "1.png", (250, 10, 20))
    with pytest.raises(ValueError, match=rf"{odd}: all pictures must be of one kind; it is in colour, .*0.png is grey"):
        data.load(f"folder:{tmp_path}", "train")
    grey = data.load(f"folder:{tmp_path}", "train", channels=1).inputs
    assert grey.shape == (2, 4, 6, 1)
    np.testing.assert_array_equal(grey[0], grey[1])
    assert grey[0, 1, 1, 0] == round(0.299 * 250 + 0.587 * 10 + 0.114 * 20)
    colour = data.load(f"folder:{tmp_path}", "train", channels=3).inputs
    assert colour[0, 1, 1].tolist() == [83, 83, 83]
    assert colour[1, 1, 1].tolist() == [250, 10, 20]


def test_pictures_of_many_sizes_need_a_size(folder):
    odd = draw(folder / "train/dog/1.png", size=(12, 8))
    with pytest.raises(ValueError, match=rf"{odd}: all pictures must have one size; it is 8 × 12, and .* is 4 × 6"):
        data.load(f"folder:{folder}", "train")
    assert data.load(f"folder:{folder}", "train", size=5).inputs.shape == (6, 5, 5, 3)
    assert data.load(f"folder:{folder}", "train", size=(4, 6)).inputs.shape == (6, 4, 6, 3)


def test_a_test_picture_of_another_size_than_the_first_of_train_is_refused(folder):
    for each in COLOURS:
        draw(folder / "test" / each / "0.png", size=(5, 4))
    with pytest.raises(
        ValueError, match=r"test/cat/0.png: all pictures must have one size; .*train/cat/0.png is 4 × 6"
    ):
        data.load(f"folder:{folder}", "test")


def test_scaling_keeps_proportions_and_cuts_both_sides(tmp_path):
    """Stripes of 4 pixels, 16 wide: the middle 8 × 8 stay, each stripe of its own colour, at half the size 4 × 4."""
    stripes = np.repeat(np.array([10, 90, 170, 250], np.uint8), 4)
    for split in ("train", "test"):
        path = tmp_path / split / "a" / "0.png"
        path.parent.mkdir(parents=True)
        PIL.Image.fromarray(np.tile(stripes, (8, 1))).save(path)
    same = data.load(f"folder:{tmp_path}", "train", size=8).inputs[0, ..., 0]
    np.testing.assert_array_equal(same, np.tile(stripes[4:12], (8, 1)))
    half = data.load(f"folder:{tmp_path}", "train", size=4).inputs[0, ..., 0]
    assert half[:, 0].tolist() != half[:, 3].tolist()
    assert (half[:, 0] <= 90).all()
    assert (half[:, 3] >= 170).all()


def deep_png(pixels):
    """A PNG of 16 bits a channel in colour, which Pillow reads and cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def spoil(name):
    def change(folder):
        path = folder / "train/dog/2.png"
        if name == "text":
            path.write_text("no picture")
        elif name == "short":
            path.write_bytes(path.read_bytes()[:-25])
        elif name == "empty file":
            path.write_bytes(b"")
        elif name == "transparent":
            PIL.Image.new("RGBA", (6, 4), (1, 2, 3, 100)).save(path)
        elif name == "deep":
            PIL.Image.fromarray(np.full((4, 6), 1000, np.uint16)).save(path)
        elif name == "deep colour":
            path.write_bytes(deep_png(np.full((4, 6, 3), 0x00FF, ">u2")))
        elif name == "unknown":
            path.rename(path.with_suffix(".tiff"))
        elif name == "empty class":
            for each in path.parent.iterdir():
                each.unlink()
        elif name == "stray":
            draw(folder / "train/7.png")
        elif name == "classes":
            (folder / "train/dog").rename(folder / "train/fox")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("text", r"train/dog/2\.png cannot be read as a picture; it may be damaged: cannot identify"),
        ("short", r"train/dog/2\.png cannot be read as a picture; it may be damaged"),
        ("empty file", r"train/dog/2\.png cannot be read as a picture"),
        ("transparent", r"train/dog/2\.png: pictures must be opaque, and it has transparent pixels"),
        ("deep", r"train/dog/2\.png: pictures must have 8 bits a channel, grey or RGB; it has 16"),
        ("deep colour", r"train/dog/2\.png: pictures must have 8 bits a channel, grey or RGB; it has 16"),
        ("unknown", r"files must end in \.png, .*\.bmp; .*train/dog/2\.tiff does not, one of 1 in .*dog"),
        ("empty class", r"the class .*train/dog is empty"),
        ("stray", r"train/7\.png lies in no class"),
        ("classes", r"the classes of all splits must be the same; train lacks dog; test lacks fox"),
    ],
)
def test_bad_folders_are_named(folder, change, message):
    spoil(change)(folder)
    with pytest.raises(ValueError, match=message):
        data.load(f"folder:{folder}", "train")


def test_opaque_pictures_with_an_alpha_channel_are_good(folder):
    whole = data.load(f"folder:{folder}", "train").inputs
    draw(folder / "train/dog/2.png", COLOURS["dog"], mode="RGBA")
    draw(folder / "train/dog/1.png", COLOURS["dog"], mode="P", optimize=False)
    again = data.load(f"folder:{folder}", "train").inputs
    np.testing.assert_array_equal(again[5], whole[5])
    assert again[4].shape == whole[4].shape


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        data.load(f"folder:{tmp_path / 'nowhere'}", "train")
    with pytest.raises(ValueError, match="must hold the folders train and test"):
        data.load(f"folder:{tmp_path}", "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"train must hold a folder for each class; it holds none"):
        data.load(f"folder:{tmp_path}", "train")


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("digits", {"size": 8}, "size and channels are settings of the source folder:DIR; got them with 'digits'"),
        ("folder:x", {"channels": 2}, "channels must be 1 for grey or 3 for RGB; got 2"),
        ("folder:x", {"size": 0}, "size must be height and width in pixels, or one number for both; got 0"),
        ("folder:x", {"size": (3, -1)}, r"size must be height and width .* got \(3, -1\)"),
    ],
)
def test_bad_settings_are_named(source, settings, message):
    with pytest.raises(ValueError, match=message):
        data.load(source, "train", **settings)


def test_real_photographs(tmp_path, cifar10_pictures):
    with zipfile.ZipFile(cifar10_pictures) as opened:
        wanted = [name for name in opened.namelist() if name.endswith(("/0001.jpg", "/0002.jpg"))]
        opened.extractall(tmp_path, wanted)
    train = data.load(f"folder:{tmp_path / 'cifar10'}", "train")
    assert train.inputs.shape == (20, 32, 32, 3)
    assert train.class_names == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    for index in (3, 18):
        file = tmp_path / "cifar10/train" / train.class_names[index // 2] / f"000{index % 2 + 1}.jpg"
        np.testing.assert_array_equal(train.inputs[index], np.asarray(PIL.Image.open(file)))


def test_what_is_no_picture_is_handed_to_no_other_program(folder, monkeypatch):
    """Pillow takes PostScript for a picture whatever its name, and gives it to Ghostscript, which runs it."""
    path = folder / "train/dog/2.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\nshowpage\n%%EOF\n")
    monkeypatch.setattr("subprocess.check_call", lambda *arguments, **keywords: pytest.fail("a program was started"))
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments: pytest.fail("Ghostscript was called"))
    with pytest.raises(ValueError, match=r"2\.png cannot be read as a picture; .*cannot identify"):
        data.load(f"folder:{folder}", "train")
    PIL.Image.new("RGB", (6, 4)).save(path, format="GIF")
    with pytest.raises(ValueError, match=r"2\.png cannot be read as a picture; .*cannot identify"):
        data.load(f"folder:{folder}", "train")


def test_a_pipe_among_the_pictures_is_named_and_not_waited_for(folder):
    os.mkfifo(next(path for path in (folder / "train").iterdir() if path.is_dir()) / "waits.png")
    with pytest.raises(ValueError, match=r"waits\.png is neither a file nor a folder"):
        data.load(f"folder:{folder}", "train")


def test_links_out_of_the_folder_and_circles_are_refused(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "deep").mkdir(parents=True)
    draw(outside / "deep" / "9.png")
    dog = folder / "train" / "dog"
    count = len(data.load(f"folder:{folder}", "train").labels)
    for target, link in ((outside, dog / "more"), (outside / "deep" / "9.png", dog / "9.png")):
        link.symlink_to(target)
        with pytest.raises(ValueError, match=rf"{link.name} is a symbolic link that leads out of {folder}, and is not"):
            data.load(f"folder:{folder}", "train")
        link.unlink()
    for target in (folder, folder / "train", dog, Path("circle")):
        (dog / "circle").symlink_to(target)
        with pytest.raises(ValueError, match=r"leads in a circle|files must end in"):
            data.open_examples(f"folder:{folder}", "train")
        (dog / "circle").unlink()
    (dog / "twin.png").symlink_to(dog / "2.png")
    assert len(data.load(f"folder:{folder}", "train").labels) == count + 1
    (folder / "test").rename(outside / "test")
    (folder / "test").symlink_to(outside / "test")
    with pytest.raises(ValueError, match="test is a symbolic link that leads out of"):
        data.load(f"folder:{folder}", "test")

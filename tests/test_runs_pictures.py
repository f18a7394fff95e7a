import matplotlib.image
import numpy as np
import pytest

from kdjax.runs.pictures import image_grid, learning_curves, prediction_grid, save_figure

NAMES = [f"class{index}" for index in range(10)]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)


def test_image_grid_draws_each_image_under_its_title():
    figure = image_grid(IMAGES, NAMES[:5], columns=2)
    drawn = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in drawn] == NAMES[:5]
    assert len(figure.axes) == 6
    for axis, image in zip(drawn, IMAGES[..., 0].astype(np.float32), strict=True):
        np.testing.assert_allclose(
            axis.images[0].get_array(), (image - image.min()) / (image.max() - image.min()), rtol=1e-6
        )
    blank = image_grid(np.full((1, 4, 4, 3), 7.0), ["blank"]).axes[0].images[0].get_array()
    assert np.isfinite(blank).all()


def test_prediction_grid_says_class_and_probability_and_marks_the_wrong():
    teacher, student = np.zeros((5, 10)), np.zeros((5, 10))
    labels = np.asarray([3, 1, 4, 1, 5])
    teacher[np.arange(5), labels] = np.log(9.0)  # 9 against nine ones: probability 1/2
    student[np.arange(5), labels] = 1000.0
    student[2] = [0.0] * 9 + [np.log(3.0)]  # class 9 at 3 / 12
    figure = prediction_grid(IMAGES, labels, teacher, student, NAMES)
    texts = [axis.texts for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in figure.axes if axis.images] == [f"label class{label}" for label in labels]
    assert [text.get_text() for text in texts[0]] == ["teacher: class3 (50.0 %) ✓", "student: class3 (100.0 %) ✓"]
    assert [text.get_text() for text in texts[2]] == ["teacher: class4 (50.0 %) ✓", "student: class9 (25.0 %) ✗"]
    colours = [text.get_color() for pair in texts for text in pair]
    assert colours[5] not in colours[:5] + colours[6:]
    assert len(set(colours)) == 2


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_a_label_that_is_none_of_the_classes_is_called_none(dtype):
    """-1 took the last name, and one beyond the last was an error."""
    labels, logits = np.asarray([-1, 9, 10, 0, -100], dtype), np.zeros((5, 10))
    logits[:, 9] = 1.0
    drawn = [axis for axis in prediction_grid(IMAGES, labels, logits, logits, NAMES).axes if axis.images]
    assert [axis.get_title() for axis in drawn] == [
        f"label {one}" for one in ("none", "class9", "none", "class0", "none")
    ]
    assert ["✓" in axis.texts[0].get_text() for axis in drawn] == [False, True, False, False, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: image_grid(IMAGES, NAMES), "titles must be one for each of the 5 images; got 10"),
        (lambda: image_grid(np.zeros((8, 8)), ["a"]), r"images must be \[n, height, width\] .* got shape \(8, 8\)"),
        (lambda: image_grid(np.zeros((0, 8, 8)), []), r"n at least 1; got shape \(0, 8, 8\)"),
        (lambda: image_grid(IMAGES, NAMES[:5], columns=0), "columns must be at least 1; got 0"),
        (
            lambda: prediction_grid(IMAGES, np.zeros(5), np.zeros((5, 10)), np.zeros((5, 10)), NAMES),
            "labels must be whole class numbers",
        ),
        (
            lambda: prediction_grid(IMAGES, np.zeros(5, int), np.zeros((5, 10)), np.zeros((5, 9)), NAMES),
            r"student_logits must have shape \(5, 10\), .* got \(5, 9\)",
        ),
        (lambda: learning_curves({"alone": []}), "at least one epoch"),
        (
            lambda: save_figure(image_grid(IMAGES, NAMES[:5]), "digits.pngg"),
            "must be one of .*; got 'pngg'.*mean 'png'",
        ),
    ],
)
def test_pictures_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_learning_curves_draw_mean_and_range_over_seeds():
    def lines(accuracies):
        return [{"epoch": epoch + 1, "test": {"accuracy": accuracy}} for epoch, accuracy in enumerate(accuracies)]

    figure = learning_curves({"alone": lines([0.5, 0.7]), "distilled": lines([0.6, 0.8]) + lines([0.7, 0.9])[::-1]})
    (axis,) = figure.axes
    alone, distilled = axis.lines
    np.testing.assert_allclose(alone.get_xydata(), [[1, 50.0], [2, 70.0]])
    np.testing.assert_allclose(distilled.get_xydata(), [[1, 65.0], [2, 85.0]])
    corners = axis.collections[1].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(60.0)
    assert corners[:, 1].max() == pytest.approx(90.0)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["alone", "distilled"]
    assert axis.get_legend().get_title().get_text() == "mean and range of 2 seeds"
    assert axis.get_ylabel() == "test accuracy, %"


@pytest.mark.parametrize("order", [[0.6, None, 0.8], [None, 0.6, 0.8], [0.8, 0.6, None]])
def test_where_a_seed_has_no_number_there_is_neither_a_mean_nor_a_range(order):
    records = [{"epoch": 1, "test": {"accuracy": one}} for one in order]
    (axis,) = learning_curves({"alone": [*records, {"epoch": 2, "test": {"accuracy": 0.5}}]}).axes
    np.testing.assert_array_equal(axis.lines[0].get_xydata(), [[1, np.nan], [2, 50.0]])
    assert {tuple(path.vertices[:, 1]) for path in axis.collections[0].get_paths()} == {(50.0,) * 5}


def test_a_saved_figure_is_whole_and_in_the_format_of_its_ending(tmp_path):
    figure = image_grid(IMAGES, NAMES[:5], columns=5)
    save_figure(figure, tmp_path / "new" / "digits.png", dots_per_inch=100)
    picture = matplotlib.image.imread(tmp_path / "new" / "digits.png")
    assert picture.shape[:2] == (175, 750)
    assert picture.std() > 0.1
    save_figure(figure, tmp_path / "new" / "digits.SVG")
    assert "<svg" in (tmp_path / "new" / "digits.SVG").read_text()[:2000]
    assert len(list((tmp_path / "new").iterdir())) == 2

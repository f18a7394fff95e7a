"""Single examples: pictures with their labels, what each network says of them, and where it looks."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdjax.runs import pictures
from kdjax.runs._data import name_of
from kdjax.runs.report._maps import NAMES, TITLES, softmax
from kdjax.runs.report._style import COLOURS, DASHES, MAP, Drawn, panel, picture, scaled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISTINCT = 100  # classes of a label map, at most, that have a colour each in 8 bits
NONE = 128 / 255  # how grey a pixel of no class is
TOKENS = 16  # positions of the table of tokens


def first_pictures(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> Drawn:
    """The first training pictures under their labels."""
    images, labels = arrays["train_pictures"], [name_of(label, names) for label in arrays["train_labels"]]
    cells = "".join(
        f"<li>{inline(image, f'training picture, label {label}')}<span>{html.escape(label)}</span></li>"
        for image, label in zip(images, labels, strict=True)
    )
    return Drawn(
        "first-pictures",
        f"The first {len(images)} training pictures and their labels.",
        f"Labels in order: {', '.join(labels)}.",
        pictures.image_grid(images, labels),
        f'<ul class="pictures">{cells}</ul>',
    )


def predictions(
    kept: Mapping[str, Any], arrays: Mapping[str, np.ndarray], names: Sequence[str], which: Sequence[int], *, name: str
) -> Drawn:
    """Test pictures with each network's first choice and its probability."""
    places = [kept["shown"].index(index) for index in which]
    cards, right = [], dict.fromkeys(NAMES, 0)
    for place, index in zip(places, which, strict=True):
        label = int(arrays["labels"][index])
        called = name_of(label, names)
        rows = []
        for network in NAMES:
            said = softmax(arrays[f"logits_{network}"][place])
            choice = int(said.argmax())
            good = choice == label and bool(np.isfinite(said[choice]))
            right[network] += good
            short = ' class="short"' if len(names[choice]) < 15 else ""
            rows.append(
                f'<tr class="{"right" if good else "wrong"}"><th scope="row"><i class="key {network}"></i>'
                f"{TITLES[network].removeprefix('student ')}</th><td{short}>{html.escape(names[choice])} "
                f'<span aria-label="{"right" if good else "wrong"}">{"✓" if good else "✗"}</span></td>'
                f'<td class="number">{100 * said[choice]:.1f} %</td>'
                f'<td class="bar"><b style="width:{100 * said[choice]:.0f}%" class="{network}"></b></td></tr>'
            )
        shown = inline(arrays["pictures"][place], f"test picture {index}, label {called}")
        cards.append(
            f"<li><div>{shown}<span>label {html.escape(called)}</span></div><table>{''.join(rows)}</table></li>"
        )
    teacher, distilled = (arrays[f"logits_{network}"][places] for network in ("teacher", "distilled"))
    labels = arrays["labels"][np.asarray(which)]
    drawn = pictures.prediction_grid(arrays["pictures"][places], labels, teacher, distilled, names)
    scores = ", ".join(f"the {TITLES[network]} in {right[network]}" for network in NAMES)
    differ = name == "differing-pictures"
    what = (
        f"The first {len(which)} test pictures on which teacher and distilled student differ"
        if differ
        else f"The first {len(which)} test pictures"
    )
    return Drawn(
        name,
        f"{what}: first choices and their probabilities at T = 1, seed 0.",
        f"Right of these {len(which)}: {scores}.",
        drawn,
        f'<ul class="cards">{"".join(cards)}</ul>',
    )


def attention(kept: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Drawn:
    """Where on the same pictures each network's layers are active."""
    columns = [
        (network, layer) for network in ("teacher", "distilled") for layer in kept["layers"]["maps"].get(network, [])
    ]
    maps = [arrays[f"attention_{network}_{layer}"].astype(np.float32) for network, layer in columns]
    images = arrays["pictures"][: len(maps[0])]
    heads = "".join(f'<th scope="col">{TITLES[network]}<br>{html.escape(layer)}</th>' for network, layer in columns)
    rows = []
    for place, (image, index) in enumerate(zip(images, kept["shown"], strict=False)):
        cells = "".join(
            f"<td>{inline(own[place], f'attention of the {TITLES[network]}, {layer}', colours=MAP)}</td>"
            for own, (network, layer) in zip(maps, columns, strict=True)
        )
        rows.append(f"<tr><td>{inline(image, f'test picture {index}')}</td>{cells}</tr>")
    table = f'<table class="maps"><tr><th scope="col">picture<br>&nbsp;</th>{heads}</tr>{"".join(rows)}</table>'
    titles = ["picture", *(f"{TITLES[network].removeprefix('student ')}\n{layer}" for network, layer in columns)]
    lines = [[scaled(image), *(scaled(own[place]) for own in maps)] for place, image in enumerate(images)]
    figure = _rows(lines, titles)
    last = {network: own for own, (network, _) in zip(maps, columns, strict=True)}
    finding = "Bright is where a layer's channels are most active, each map from its least to its most."
    if len(last) == 2 and last["teacher"].shape == last["distilled"].shape:
        finding += f" In the last layer the two networks' maps correlate to {_correlation(*last.values()):.2f}."
    title = f"Attention, the mean square over channels, on the first {len(images)} test pictures, n = {len(images)}, seed 0."
    return Drawn("attention", title, finding, figure, f'<div class="wide" tabindex="0">{table}</div>')


def label_maps(kept: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Drawn:
    """Of the first test pictures that count the label of each pixel, and each network's first choice."""
    which, classes = kept["shown"][:3], kept["classes"]
    count = len(which)
    label, counted = arrays["labels"][which].astype(np.int64), arrays["counted"][which]
    first = {name: arrays[f"first_{name}"][which] for name in NAMES}
    columns = {"label": np.where(counted, label, -1)} | {TITLES[name]: own for name, own in first.items()}
    shown: dict[str, Any] = {}
    if "pictures" in arrays:
        shown["picture"] = [scaled(one) for one in arrays["pictures"][:count]]
    shown |= {name: _coloured(own, classes) for name, own in columns.items()}
    heads = "".join(f'<th scope="col">{name}</th>' for name in shown)
    lines = [[own[place] for own in shown.values()] for place in range(count)]
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{_inside(one, f'{name} of test picture {index}')}</td>" for name, one in zip(shown, line, strict=True)
        )
        + "</tr>"
        for index, line in zip(which, lines, strict=True)
    )
    right = {name: 100 * float(((own == label) & (own >= 0))[counted].mean()) for name, own in first.items()}
    said = ", ".join(f"the {TITLES[name]} in {one:.1f} %" for name, one in right.items())
    colour = "a colour is a class" if classes <= DISTINCT else "of so many classes some share a colour"
    return Drawn(
        "label-maps",
        f"Labels and first choices pixel by pixel, of the first {count} test pictures, seed 0: {colour}; grey is none, "
        "as where no label counts.",
        f"Right of these pictures' pixels: {said}.",
        _rows(lines, list(shown)),
        f'<div class="wide" tabindex="0"><table class="maps"><tr>{heads}</tr>{rows}</table></div>',
    )


def tokens(arrays: Mapping[str, np.ndarray]) -> str:
    """A table of the first test example's tokens: label, and each network's first choice with its probability."""
    heads = "".join(f'<th scope="col">{TITLES[name]}</th>' for name in NAMES)
    rows = []
    for place in range(min(TOKENS, arrays["labels"].shape[1])):
        label, counted = int(arrays["labels"][0, place]), bool(arrays["counted"][0, place])
        cells = []
        for name in NAMES:
            choice, sure = int(arrays[f"first_{name}"][0, place]), float(arrays[f"sure_{name}"][0, place])
            mark = (" ✓" if choice == label >= 0 else " ✗") if counted else ""
            cells.append(f'<td class="number">{choice}{mark} {100 * sure:.0f} %</td>')
        rows.append(
            f'<tr><th scope="row">{place}</th><td class="number">{label if counted else "none"}</td>{"".join(cells)}</tr>'
        )
    head = f'<tr><th scope="col">position</th><th scope="col">label</th>{heads}</tr>'
    title = (
        "The first test example: the label's class number at each position, and first choices with their probability."
    )
    table = f'<table class="results">{head}{"".join(rows)}</table>'
    return f'<p>{title}</p><div class="wide" tabindex="0">{table}</div>'


def entropies(arrays: Mapping[str, np.ndarray]) -> Drawn:
    """How unsure each network is at each position, over the test data."""
    figure, axes = panel()
    counted = arrays["counted"].sum(axis=0)
    means = {}
    for name in NAMES:
        # They are kept in float16, whose sums would end at 65,504.
        total = np.where(arrays["counted"], arrays[f"entropy_{name}"].astype(np.float64), 0.0).sum(axis=0)
        values = np.divide(total, counted, out=np.full(len(counted), np.nan), where=counted > 0)
        means[name] = float(total.sum() / max(counted.sum(), 1))
        axes.plot(values, color=COLOURS[name], linestyle=DASHES[name], label=TITLES[name], linewidth=1.6)
    axes.set(xlabel="position", ylabel="entropy, bits")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.2, color=COLOURS["ink"], linewidth=0.6)
    axes.legend()
    said = ", ".join(f"{TITLES[name]} {one:.2f} bits" for name, one in means.items())
    title = f"Mean entropy of the predictions by position, n = {int(counted.sum()):,} tokens with a label, seed 0."
    return Drawn("entropy", title, f"Over all positions: {said}.", figure)


def predicted(arrays: Mapping[str, np.ndarray]) -> list[Drawn]:
    """Of a regression each network's predictions against the labels, of the examples that count."""
    found = []
    counted = arrays["counted"]
    labels = arrays["labels"][counted].astype(np.float64)
    for name in NAMES:
        own = arrays[f"predicted_{name}"][counted].astype(np.float64)
        figure, axes = panel(4.3, 3.5)
        ends = [float(min(labels.min(), own.min())), float(max(labels.max(), own.max()))]
        axes.plot(ends, ends, color=COLOURS["ink"], linewidth=0.8, linestyle=":")
        shown = slice(2000)
        axes.scatter(labels[shown], own[shown], s=10, alpha=0.5, linewidth=0, color=COLOURS[name])
        axes.set(xlabel="label", ylabel=f"predicted by the {TITLES[name]}")
        axes.grid(alpha=0.2, color=COLOURS["ink"], linewidth=0.6)
        error = float(np.sqrt(np.mean((own - labels) ** 2)))
        title = f"{TITLES[name].capitalize()}: predictions against labels, n = {len(labels):,}, seed 0."
        finding = f"The root mean squared error is {error:.4g}; on the dotted line a prediction is right."
        found.append(Drawn(f"predicted-{name}", title, finding, figure))
    return found


def inline(pixels: np.ndarray, text: str, *, colours: str = "gray") -> str:
    """A picture inside the page, from its darkest to its brightest."""
    return _inside(scaled(pixels), text, colours=colours)


def _inside(pixels: np.ndarray, text: str, *, colours: str = "gray") -> str:
    """The same of pixels from 0 to 1, as they are."""
    data = base64.b64encode(picture(pixels, colours=colours)).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def _coloured(labels: np.ndarray, classes: int) -> np.ndarray:
    """Class numbers as colours, [..., 3]; the first class, the usual background, is black; what is no class is grey."""
    from matplotlib import colormaps

    others = colormaps["viridis"](np.linspace(0.15, 1, classes - 1))[:, :3]
    palette = np.asarray([(0.0, 0.0, 0.0), *others, (NONE, NONE, NONE)])
    numbers = labels.astype(np.int64)
    return palette[np.where((numbers >= 0) & (numbers < classes), numbers, classes)]


def _rows(lines: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> "Figure":
    """A figure of pictures, of pixels from 0 to 1, in rows, the first row under its titles."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.25 * len(titles), 1.2 * len(lines) + 0.4), layout="constrained")
    for row, line in zip(figure.subplots(len(lines), len(titles), squeeze=False), lines, strict=True):
        for column, (axes, pixels) in enumerate(zip(row, line, strict=True)):
            colours = "gray" if column == 0 else MAP
            axes.imshow(pixels, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
            axes.axis("off")
            if axes.get_subplotspec().is_first_row():
                axes.set_title(titles[column], fontsize=9)
    return figure


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over pictures of the correlation of two maps."""
    found = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(one, other, strict=True) if a.std() and b.std()]
    return float(np.mean(found)) if found else float("nan")

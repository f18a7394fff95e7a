"""How the report's figures look: one palette that colour-blind people tell apart, in light and dark, and on paper as PNG."""

import html
import io
import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By name: on light, on dark. Okabe and Ito's colours, darker or lighter where they would not be read on the ground.
PALETTE = {
    "ink": ("#24292f", "#d7dde3"),
    "teacher": ("#3f464d", "#c3ccd4"),
    "alone": ("#d55e00", "#e69f00"),
    "distilled": ("#0072b2", "#56b4e9"),
    "term1": ("#0072b3", "#56b4e8"),
    "term2": ("#d55e01", "#e69f01"),
    "term3": ("#009e73", "#2cc49a"),
    "term4": ("#b3578b", "#e5a3c8"),
    "term5": ("#8c6d00", "#f0e442"),
    "term6": ("#5b6470", "#adb5bd"),
}
COLOURS = {name: light for name, (light, _) in PALETTE.items()}
# Networks and terms are told apart by these, too.
DASHES = {"teacher": (0, (5, 2)), "alone": (0, (2, 1.5)), "distilled": "-"}
MARKERS = {"teacher": "s", "alone": "^", "distilled": "o"}
SERIES = [(COLOURS[f"term{n}"], dash) for n, dash in enumerate(("-", (0, (5, 2)), (0, (2, 1.5)), "-.", ":", "-"), 1)]
MAP = "cividis"
_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"),
        COLOURS["ink"],
    ),
}
_NOT_REFERRED_TO = re.compile(r' id="[A-Za-z0-9]+_[0-9]+"')


class Drawn(NamedTuple):
    """One figure of the page.

    Attributes:
      name: of its PNG.
      title: what is drawn, with units and n.
      finding: what can be seen, in words: it stands under the figure, and is read out in its place.
      figure: matplotlib's.
      html: what stands in the page in the place of the figure; "": the figure itself.
    """

    name: str
    title: str
    finding: str
    figure: "Figure"
    html: str = ""


@contextmanager
def styled() -> Iterator[None]:
    """Within, figures are made and written in the report's style."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):
        yield


def panel(width: float = 4.3, height: float = 3.0) -> tuple["Figure", Any]:
    """A figure of one panel, in inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def as_svg(drawn: Drawn) -> str:
    """The figure for the inside of a page: its colours follow the page's, its text is text."""
    import matplotlib

    written = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": drawn.name}):
        nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawn.figure.savefig(written, format="svg", metadata=nothing)
    found = written.getvalue()
    found = found[found.index("<svg") :]
    found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    found = _NOT_REFERRED_TO.sub("", found)
    for name, (light, _) in PALETTE.items():
        found = found.replace(light, f"var(--{name})")
    # What names no colour is black, which a dark ground would hide.
    found = re.sub(r"<text (?![^>]*fill)", '<text fill="var(--ink)" ', found)
    root = found[: found.index(">") + 1]
    own = dict(re.findall(r'([\w:]+)="([^"]*)"', root))
    kept = " ".join(f'{name}="{value}"' for name, value in own.items() if name not in ("width", "height"))
    wide = 1.55 * float(own["viewBox"].split()[2])
    said = html.escape(drawn.finding)
    return f'<svg {kept} role="img" aria-label="{said}" style="max-width:{wide:.0f}px">{found[len(root) :]}'


def as_png(drawn: Drawn) -> bytes:
    """The figure on white under its title, 150 dots per inch. Nothing is drawn of it afterwards."""
    drawn.figure.suptitle("\n".join(textwrap.wrap(drawn.title, int(13.5 * drawn.figure.get_figwidth()))), fontsize=9)
    written = io.BytesIO()
    with warnings.catch_warnings():
        # A name in letters that matplotlib's own font lacks: the page has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawn.figure.savefig(written, format="png", dpi=150, facecolor="white")
    return written.getvalue()


def picture(pixels: np.ndarray, *, colours: str | None = "gray") -> bytes:
    """Pixels from 0 to 1 as PNG: [height, width] through a colour map, or [height, width, 3] as they are."""
    from matplotlib.image import imsave

    written = io.BytesIO()
    imsave(written, pixels, format="png", cmap=colours, vmin=0, vmax=1)
    return written.getvalue()


def scaled(pixels: np.ndarray) -> np.ndarray:
    """A picture from 0, its darkest, to 1; without the axis of its only channel."""
    values = np.asarray(pixels, np.float32)
    values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low if high > low else 1.0)

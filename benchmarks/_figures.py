"""Pictures of measured costs beside what arithmetic allows."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2166ac", "#d9822b", "#1a7f37", "#7b3294")


def draw(rows: list[dict[str, Any]], across: str, rate: float) -> "Figure":
    """Medians and quartiles over an axis, a line a series, and dashed the series' arithmetic limit at `rate` FLOP/s."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.add_subplot()
    drawn: list[tuple] = []  # limits of two series may be the same line
    for name, colour in zip(dict.fromkeys(row["series"] for row in rows), COLOURS, strict=False):
        own = sorted((row for row in rows if row["series"] == name), key=lambda row: row["at"])
        at = [row["at"] for row in own]
        low, middle, high = zip(*(row["quartiles_ms"] for row in own), strict=True)
        axis.plot(at, middle, marker="o", markersize=4, color=colour, label=name)
        axis.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
        limits = tuple(row["limit_ms"] for row in own)
        if None not in limits and limits not in drawn:
            drawn.append(limits)
            axis.plot(at, limits, linestyle="--", linewidth=1, color=colour)
    axis.plot([], [], linestyle="--", linewidth=1, color="#555555", label=f"limit at {rate / 1e9:,.0f} GFLOP/s")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(sorted({row["at"] for row in rows}))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_xlabel(across)
    axis.set_ylabel("ms a step")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure

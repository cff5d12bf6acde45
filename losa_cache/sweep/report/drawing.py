"""Common parts of a sweep's figures: palette, panels, axes, legend. matplotlib is imported only when it is needed."""

import io
import math
import statistics
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from losa_cache.extras import extra
from losa_cache.tasks import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; styles of line tell it again.
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"
RED = "#D55E00"
DOT, PALE, INK = "#7f8c99", "#c3cad1", "#222222"
STYLES = ((BLUE, "-"), (GREEN, "--"), (PURPLE, "-."), (ORANGE, (0, (1, 1))), (SKY, (0, (5, 1, 1, 1, 1, 1))))
WIDTH = 8.0  # inches


def require_matplotlib() -> None:
    """Refuse to go on without matplotlib.

    Raises:
        UserError: naming the extra that brings it.
    """
    with extra("matplotlib", "the figures of a sweep need matplotlib", "sweep"):
        import_module("matplotlib.figure")


def metric_axis(axes: "Axes", metric: Metric, *, label: bool = True) -> None:
    """Scale y by what is drawn so far, though a share not beyond 100 %."""
    low, high = axes.get_ylim()
    if metric.share:
        axes.set_ylim(low, min(high, 100.5))  # half a point, so that a mark at 100 is whole
    if label:
        axes.set_ylabel(f"validation {metric.label}")


def number_axis(axes: "Axes", values: Sequence[float]) -> None:
    """Scale x by what lies along it: logarithmic above a decade, or where it is a count; and beside zero, too."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, SymmetricalLogLocator

    above = [value for value in values if value > 0]
    counts = all(isinstance(value, int) for value in values)
    if not above or min(values) < 0 or not (counts or _by_decades(above)):
        return
    if len(above) == len(values):
        axes.set_xscale("log")
        wide = max(values) / min(values) > 100
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    else:
        decade = 10.0 ** math.floor(math.log10(min(above)))
        axes.set_xscale("symlog", linthresh=decade)
        locator = SymmetricalLogLocator(base=10, linthresh=decade)
        locator.set_params(numticks=5)
        axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_minor_formatter(NullFormatter())
    if counts:
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))


def _by_decades(values: Sequence[float]) -> bool:
    """Whether numbers above 0 span more than a decade, and lie more evenly by decades than by size."""
    low, high, middle = min(values), max(values), math.log(statistics.median(values))
    halfway, halfway_by_decades = math.log((low + high) / 2), math.log(low * high) / 2
    return high > 10 * low and abs(middle - halfway_by_decades) < abs(middle - halfway)


def panels(rows: int, columns: int, height: float, *, share: bool = False) -> "tuple[Figure, list[Axes]]":
    """A figure and its panels, row by row. No pyplot: nothing of a caller's figures or settings is touched."""
    from matplotlib.figure import Figure

    figure = Figure((WIDTH, rows * height + 0.2), dpi=150, layout="constrained", facecolor="white")
    panels = [axes for row in figure.subplots(rows, columns, squeeze=False, sharey=share) for axes in row]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.grid(axis="y", color="#e6e9ec", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9, color=INK, labelcolor=INK)
    return figure, panels


def legend(figure: "Figure", *, reverse: bool = False) -> None:
    """One legend for all panels, above them, where it covers nothing."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    names = list(reversed(entries)) if reverse else list(entries)
    figure.legend(
        [entries[name] for name in names],
        names,
        loc="outside upper left",
        ncols=3,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=2.4,
        columnspacing=1.6,
    )


def plain(text: str, letters: int = 18) -> str:
    """Text that matplotlib does not read as mathematics, cut to a length that fits."""
    return (text if len(text) <= letters else text[: letters - 1] + "…").replace("$", r"\$")


def png(figure: "Figure") -> bytes:
    """Encode a figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()

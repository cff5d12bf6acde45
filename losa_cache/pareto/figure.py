"""A comparison as a figure in the manner of the paper's Fig. 4; of costs alone, a panel of each."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from losa_cache.pareto.labels import Box, place_labels
from losa_cache.pareto.rows import CACHED, COSTS, INSIDE, SIDE, Cost, Row, front
from losa_cache.sweep.report.drawing import BLUE, DOT, GREEN, INK, ORANGE, legend, number_axis, panels, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HALO = "#F0E442"  # the yellow of the same palette
HALO_POINTS, MARK_POINTS = 17, 8
MARKS: dict[str, dict[str, Any]] = {
    CACHED: {"marker": "o", "color": BLUE},
    SIDE: {"marker": "D", "color": GREEN},
    INSIDE: {"marker": "s", "color": ORANGE},
}
"""How methods are drawn, by how they are trained."""
TITLE_LETTERS = 110
LETTERS = 26
"""The letters of a method's name for which a panel has room."""
BARS = (
    Cost("trained parameters", "parameters", lambda row: row.parameters),
    Cost("training (images/s)", "speed", lambda row: row.images_per_second),
    Cost("peak memory (GB)", "memory", lambda row: row.peak_gb),
    Cost("inference (GMACs a sample)", "inference", lambda row: row.gmacs),
)
"""What is drawn of costs alone."""


LEAST = 0.2
"""An axis spans at least this share of its largest value, so that small differences look small."""


def draw(found: Sequence[Row], title: str) -> "Figure":
    """Draw accuracy against each cost, for the methods of which both are known."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure, grid = panels(2, 2, 4.2)
    for place, (axes, cost) in enumerate(zip(grid, COSTS, strict=True)):
        _panel(axes, found, cost)
        axes.tick_params("x", labelsize=8)
        if place % 2 == 0:
            axes.set_ylabel("test top-1 (%)")
    bars = "; bars: one standard deviation over seeds" if any(row.deviation is not None for row in found) else ""
    _legend(figure, f"{title}{bars}")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # only now is it known where everything lies, and there it stays
    figure.set_layout_engine("none")
    for axes, cost in zip(grid, COSTS, strict=True):
        _label(axes, found, cost, canvas.get_renderer())
    return figure


def draw_costs(found: Sequence[Row], title: str) -> "Figure":
    """Draw each cost of the methods of which it is known."""
    figure, grid = panels(2, 2, 1.0 + 0.2 * len(found), share=True)
    for axes, cost in zip(grid, BARS, strict=True):
        for place, row in enumerate(reversed(found)):
            if (value := cost.of(row)) is not None:
                axes.plot(value, place, linestyle="none", markersize=6, label=row.kind, **MARKS[row.kind])
                _beside(axes, value, place, _short(value))
        values = [value for row in found if (value := cost.of(row)) is not None]
        if values and min(values) > 0 and max(values) > 10 * min(values):
            axes.set_xscale("log")
            axes.set_xlim(min(values) / 1.6, max(values) * 4)
        elif values:
            axes.set_xlim(0, max(values) * 1.3 or 1)
        axes.set_xlabel(cost.name)
        axes.set_yticks(range(len(found)), [plain(row.name, LETTERS) for row in reversed(found)])
        axes.set_ylim(-0.6, len(found) - 0.4)
    _legend(figure, title)
    return figure


def _legend(figure: "Figure", title: str) -> None:
    """Say above the legend what is drawn."""
    legend(figure)
    (above,) = figure.legends
    above.set_title(plain(title, TITLE_LETTERS))
    above.get_title().set(fontsize=10, color=INK)
    above.set_alignment("left")


def _short(value: float) -> str:
    """Write three digits, in thousands or millions where there are more before the point."""
    from matplotlib.ticker import EngFormatter

    rounded = float(f"{value:.3g}")
    return f"{rounded:g}" if rounded < 1000 else EngFormatter()(rounded)


def _beside(axes: "Axes", value: float, place: int, text: str) -> None:
    axes.annotate(text, (value, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=7.5, color=INK)


def _known(found: Sequence[Row], cost: Cost) -> list[tuple[Row, float, float]]:
    return [
        (row, x, row.mean) for row in found if (x := cost.of(row)) is not None and row.mean is not None
    ]  # fmt: skip


def _panel(axes: "Axes", found: Sequence[Row], cost: Cost) -> None:
    known = _known(found, cost)
    axes.set_xlabel(cost.name)
    if not known:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=INK)
        return
    number_axis(axes, [x for _, x, _ in known])
    best = [(cost.of(row) or 0.0, row.mean or 0.0) for row in front(found, cost)]
    axes.plot(
        *zip(*best, strict=True), linestyle="none", marker="o", markersize=HALO_POINTS, color=HALO, alpha=0.8,
        markeredgewidth=0, label="Pareto front", zorder=1,
    )  # fmt: skip
    for row, x, mean in known:
        axes.errorbar(
            [x],
            [mean],
            None if row.deviation is None else [row.deviation],
            linestyle="none",
            markersize=6,
            markeredgecolor="white",
            ecolor=DOT,
            elinewidth=1,
            capsize=2,
            label=row.kind,
            zorder=3,
            **MARKS[row.kind],
        )
    _room(axes, known)
    right, low = axes.get_xlim()[1], axes.get_ylim()[0]
    across, up = [*(x for x, _ in best), right], [*(y for _, y in best), best[-1][1]]
    axes.fill_between(across, low, up, step="post", color=HALO, alpha=0.12, linewidth=0, zorder=0)
    axes.step(across, up, where="post", color=INK, linewidth=0.8, alpha=0.5, zorder=0.5)


def _room(axes: "Axes", known: Sequence[tuple[Row, float, float]]) -> None:
    """Leave room for labels around what is drawn."""
    low, high = axes.get_ylim()
    margin = 0.16 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    values = [x for _, x, _ in known]
    if axes.get_xscale() == "log":
        decades = max(0.6, math.log10(max(values) / min(values)))
        axes.set_xlim(min(values) / 10 ** (0.2 * decades), max(values) * 10 ** (0.2 * decades))
    elif axes.get_xscale() == "symlog":
        axes.set_xlim(-0.3 * min(value for value in values if value > 0), max(values) * 6)
    else:
        wide = max(max(values) - min(values), LEAST * max(values)) or 1.0
        middle = (min(values) + max(values)) / 2
        axes.set_xlim(middle - 0.7 * wide, middle + 0.7 * wide)


def _label(axes: "Axes", found: Sequence[Row], cost: Cost, renderer: Any) -> None:
    """Name each point, and join a name that does not lie beside its point with it."""
    known = _known(found, cost)
    if not known:
        return
    texts = [axes.text(x, mean, plain(row.name, LETTERS), fontsize=7.5, color=INK, zorder=6) for row, x, mean in known]
    extents = [text.get_window_extent(renderer) for text in texts]
    points = [tuple(axes.transData.transform((x, mean))) for _, x, mean in known]
    inside = axes.get_window_extent(renderer)
    unit = renderer.points_to_pixels(1.0)
    best = front(found, cost)
    placed = place_labels(
        points,
        [(box.width + 2 * unit, box.height) for box in extents],
        Box(inside.x0, inside.y0, inside.x1, inside.y1),
        marks=[unit * (HALO_POINTS if row in best else MARK_POINTS) for row, _, _ in known],
        others=[*_bars(axes, known, 2 * unit), *_steps(axes, best, cost, unit)],
    )
    back = axes.transData.inverted()
    for text, box, point in zip(texts, placed, points, strict=True):
        text.set(ha="center", va="center")
        x, y = back.transform(box.middle)
        text.set_position((x, y))
        near = (min(max(point[0], box.left), box.right), min(max(point[1], box.bottom), box.top))
        if math.dist(near, point) > 14 * unit:
            ends = back.transform([point, near])
            axes.plot(ends[:, 0], ends[:, 1], color=DOT, linewidth=0.6, zorder=2)


def _bars(axes: "Axes", known: Sequence[tuple[Row, float, float]], half: float) -> list[Box]:
    """Give where the bars of deviations lie."""
    found = []
    for row, x, mean in known:
        (left, low), (_, high) = (
            axes.transData.transform((x, mean + sign * (row.deviation or 0.0))) for sign in (-1, 1)
        )
        found.append(Box(left - half, low, left + half, high))
    return found


def _steps(axes: "Axes", best: Sequence[Row], cost: Cost, half: float) -> list[Box]:
    """Give where the line of the front lies."""
    corners = [axes.transData.transform((x, y)) for _, x, y in _known(best, cost)]
    ends = [*(x for x, _ in corners[1:]), axes.get_window_extent().x1]
    level = [Box(x, y - half, end, y + half) for (x, y), end in zip(corners, ends, strict=True)]
    upright = [Box(x - half, low, x + half, high) for (_, low), (x, high) in pairwise(corners)]
    return [*level, *upright]

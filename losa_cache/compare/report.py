"""A comparison as one HTML file, beside its figure as a PNG and its figures as JSON."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from losa_cache.compare.record import Comparison
from losa_cache.compare.table import HEAD, cells, say_p
from losa_cache.errors import UserError
from losa_cache.files import write_whole
from losa_cache.sweep.report.drawing import BLUE, DOT, RED, legend, panels, plain, png, require_matplotlib
from losa_cache.sweep.report.html_page import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "compare"
LETTERS = 48
"""The letters of a method's name for which the figure has room."""
CAPTION = (
    "Test top-1 of each method with its interval at 95 %: over seeds where there are several (grey: each seed), else "
    "over images."
)


def write_report(comparison: Comparison, folder: str | Path) -> Path:
    """Write ``compare.json``, ``compare.png`` and ``compare.html``; each whole or not at all, the HTML last.

    Returns:
        path of the HTML file.

    Raises:
        UserError: without matplotlib, or if the folder cannot be written.
    """
    require_matplotlib()
    drawn, folder = png(draw(comparison)), Path(folder)
    contents = {
        "json": json.dumps(comparison.to_json(), indent=2).encode(),
        "png": drawn,
        "html": html(comparison, drawn).encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, content in contents.items():
            write_whole(folder / f"{NAME}.{kind}", content)
    except OSError as error:
        raise UserError(f"report folder {str(folder)!r} cannot be written ({error.strerror}).") from error
    return folder / f"{NAME}.html"


def html(comparison: Comparison, drawn: bytes) -> str:
    """Lay a comparison out.

    Args:
        comparison: the comparison.
        drawn: its figure, a PNG.
    """
    rows = [
        ("chosen" if method is comparison.methods[0] else "", cells(comparison, method))
        for method in comparison.methods
    ]
    pairs = [
        (
            "",
            [pair.first, pair.second, f"{pair.difference:.2f}", f"{pair.standard_error:.2f}", say_p(pair.p), pair.test],
        )
        for pair in comparison.pairs
    ]
    told = (
        f"The best on top. Behind the best: points on the same {comparison.samples:,} test images, "
        "± one standard error."
    )
    return render(
        "compare.html",
        comparison.title,
        figure=NAME,
        png=drawn,
        caption=CAPTION,
        told=told,
        head=HEAD,
        methods=rows,
        pair_head=["better", "than", "by (points)", "standard error", "p", "test"],
        pairs=pairs,
        notes=comparison.notes,
        trained=[(method.name, method.runs) for method in comparison.methods if method.runs],
    )


def draw(comparison: Comparison) -> "Figure":
    """Draw each method's accuracy with its interval, the best on top."""
    figure, (axes,) = panels(1, 1, 1.2 + 0.32 * len(comparison.methods))
    for place, method in enumerate(reversed(comparison.methods)):
        best = method is comparison.methods[0]
        error = [[method.top1 - method.low], [method.high - method.top1]]
        axes.errorbar(
            [method.top1], [place], xerr=error, fmt="o", color=RED if best else BLUE, markersize=6, elinewidth=1.4,
            capsize=3, label="the best" if best else "mean and interval",
        )  # fmt: skip
        if len(method.each) > 1:
            axes.plot(method.each, [place] * len(method.each), "|", color=DOT, markersize=9, label="one seed", zorder=3)
    axes.set_yticks(range(len(comparison.methods)), [plain(one.name, LETTERS) for one in reversed(comparison.methods)])
    axes.set_ylim(-0.6, len(comparison.methods) - 0.4)
    axes.set_xlabel("test top-1 (%)")
    axes.grid(axis="x", color="#e6e9ec", linewidth=0.8)
    legend(figure)
    return figure

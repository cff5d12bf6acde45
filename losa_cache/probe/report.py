"""A probe as a folder: one JSON file, a figure layer by layer, and both as one HTML file."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from losa_cache.errors import UserError
from losa_cache.files import write_json, write_whole
from losa_cache.probe.record import ALL, Line, ProbeRecord, table
from losa_cache.sweep.report.drawing import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    legend,
    metric_axis,
    panels,
    plain,
    png,
    require_matplotlib,
)
from losa_cache.sweep.report.html_page import render
from losa_cache.tasks.classification import TOP1

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

RECORD, FIGURE, REPORT = "probe.json", "layers.png", "report.html"
STYLES = {"cls": (BLUE, "-"), "mean": (GREEN, "--"), "both": (ORANGE, "-.")}
CAPTION = (
    "Top-1 of a tuned regression on each layer by itself, logistic or ridge, whichever is better held out; the level "
    "line is that on both rows of all layers together."
)


def write_report(record: ProbeRecord, folder: Path) -> None:
    """Write ``layers.png``, ``report.html`` and, last, ``probe.json``; without matplotlib only the JSON.

    Raises:
        UserError: if the folder cannot be written.
    """
    try:
        if has_matplotlib():
            drawn = png(draw(record))
            write_whole(folder / FIGURE, drawn)
            write_whole(folder / REPORT, html(record, drawn).encode())
        write_json(folder / RECORD, record.to_json())
    except OSError as error:
        raise UserError(f"probe folder {str(folder)!r} cannot be written ({error.strerror}).") from error


def has_matplotlib() -> bool:
    """Whether there is matplotlib; where not, say so."""
    try:
        require_matplotlib()
    except UserError as error:
        log.warning("no figure is drawn: %s", error)
        return False
    return True


def html(record: ProbeRecord, drawn: bytes) -> str:
    """Lay a probe out.

    Args:
        record: of the probe.
        drawn: its figure, a PNG.
    """
    head, *short = table(record)
    told = {
        "Training cache": record.cache,
        "Test cache": record.test_cache or "none",
        "Images": f"{record.images.train:,} to fit, {record.images.held_out:,} held out, {record.images.test:,} to "
        "test; in the end all but the test images are fitted",
        "Chosen on": record.chosen_by,
        **({"Left out": " ".join(record.notes)} if record.notes else {}),
        "Line to beat": record.best.name,
        "Time": f"{record.seconds:.1f} s, {record.seconds_reading:.1f} of them reading",
        "Machine": record.machine,
    }
    styled = [("chosen" if row[0] else "", row[1:]) for row in short]
    by_layer = [("", _cells(line)) for line in record.lines]
    return render(
        "probe.html",
        record.title,
        head=head[1:],
        short=styled,
        figure=FIGURE,
        png=drawn,
        caption=CAPTION,
        told=told,
        full_head=_HEAD,
        full=by_layer,
    )


_HEAD = ["method", "reads", "rows", "chosen", "held out", "loss", "test", "± one standard error", "loss of the test"]


def _cells(line: Line) -> list[str]:
    figures = [line.held_out_top1, line.held_out_loss, line.test_top1, line.test_error, line.test_loss]
    shown = ["" if value is None else f"{value:.3f}" for value in figures]
    return [line.method, line.reads, line.rows, line.chosen, *shown]


def draw(record: ProbeRecord) -> "Figure":
    """Draw accuracy against depth: held out, and tested where there is a test."""
    tested = record.images.test > 0
    figure, grid = panels(1, 2 if tested else 1, 4.0, share=True)
    _curves(grid[0], record, "held_out_top1")
    grid[0].set_title("held out", fontsize=9, color=INK)
    if tested:
        _curves(grid[1], record, "test_top1")
        grid[1].set_title("test", fontsize=9, color=INK)
    metric_axis(grid[0], TOP1, label=False)
    grid[0].set_ylabel(TOP1.label)
    legend(figure)
    return figure


def _curves(axes: "Axes", record: ProbeRecord, figure: str) -> None:
    places = range(1, len(record.layers) + 1)
    regressions = record.regressions
    for kind, (colour, style) in STYLES.items():
        by_layer = {line.reads: getattr(line, figure) for line in regressions if line.rows == kind}
        if record.layers[0] in by_layer:
            values = [by_layer[layer] for layer in record.layers]
            axes.plot(places, values, color=colour, linestyle=style, marker="o", markersize=3.5, label=_NAMES[kind])
    level = [getattr(line, figure) for line in regressions if line.reads == ALL][-1]
    axes.axhline(level, color=INK, linewidth=1, linestyle=":", label="all layers together")
    axes.set_xticks(places, [plain(name) for name in _short(record.layers)], rotation=40 if len(places) > 14 else 0)
    axes.set_xlabel("layer")


_NAMES = {"cls": "class token", "mean": "mean of the patches", "both": "both"}


def _short(layers: Sequence[str]) -> list[str]:
    """Name layers by their number where all are of one kind."""
    kinds = {layer.partition(".")[0] for layer in layers}
    return [layer.partition(".")[2] for layer in layers] if len(kinds) == 1 else list(layers)

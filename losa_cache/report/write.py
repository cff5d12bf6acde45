"""An evaluation as a folder: JSON, tables as CSV, charts as PNG, and all of it as one HTML file."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from losa_cache.errors import UserError
from losa_cache.files import without_nan, write_whole
from losa_cache.report.details import NOTHING, Details
from losa_cache.report.evaluation import Figure, tables_of
from losa_cache.sweep.report.drawing import png
from losa_cache.sweep.report.html_page import render
from losa_cache.tasks import Task

NAME = "evaluation"
HEAD = ("", "metric", "value", "95 % interval", "better is")


def write_report(
    folder: Path, about: Mapping[str, Any], figures: Sequence[Figure], details: Details, *, task: Task
) -> Path:
    """Write ``evaluation.json``, a CSV a table, a PNG a chart, and ``evaluation.html``; each whole, the HTML last.

    Args:
        folder: made if it is not there.
        about: what was evaluated, and on what: ``adapter``, ``on``, ``split``, ``samples`` and others.
        figures: with their intervals.
        details: of the task.
        task: that was learned.

    Returns:
        path of the HTML file.

    Raises:
        UserError: if the folder cannot be written.
    """
    drawn = [(chart.name, png(chart.draw()), chart.caption) for chart in details.charts]
    content = {
        **about,
        "task": task.name,
        "selected_by": task.selected_by,
        "figures": {own.name: own.to_json() for own in figures},
        "tables": tables_of(details),
    }
    files = {
        f"{NAME}.json": json.dumps(without_nan(content), indent=2).encode(),
        **{f"{table.name}.csv": table.csv() for table in details.tables},
        **{f"{name}.png": picture for name, picture, _ in drawn},
        f"{NAME}.html": _html({"task": task.name, **about}, figures, details, drawn, task.selected_by).encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, written in files.items():
            write_whole(folder / name, written)
    except OSError as error:
        raise UserError(f"report folder {str(folder)!r} cannot be written ({error.strerror}).") from error
    return folder / f"{NAME}.html"


def _html(
    about: Mapping[str, Any],
    figures: Sequence[Figure],
    details: Details,
    drawn: Sequence[tuple[str, bytes, str]],
    selection: str,
) -> str:
    rows = [("chosen" if own.name == selection else "", _cells(own, own.name == selection)) for own in figures]
    tables: list[Any] = [(table.caption, table.head, [("", row) for row in table.shown()]) for table in details.tables]
    return render(
        "evaluation.html",
        f"Evaluation of {about['adapter']}",
        facts={name.capitalize(): f"{value:,}" if isinstance(value, int) else value for name, value in about.items()},
        told="Marked: the metric that trials are chosen by. Intervals are those of the bootstrap, at 95 %.",
        head=HEAD,
        rows=rows,
        drawn=drawn,
        tables=tables,
    )


def _cells(figure: Figure, selects: bool) -> list[str]:
    metric = figure.metric
    ends = (
        NOTHING
        if figure.low is None or figure.high is None
        else f"{metric.show(figure.low)} to {metric.show(figure.high)}"
    )
    value = NOTHING if math.isnan(figure.value) else metric.show(figure.value)
    return ["▸" if selects else "", figure.title, value, ends, "higher" if metric.higher else "lower"]

"""A comparison as files: JSON, a table in Markdown, the figure, and one HTML page that needs nothing else."""

import json
from pathlib import Path
from typing import Any

from losa_cache.errors import UserError
from losa_cache.files import with_seal, write_whole
from losa_cache.pareto.figure import draw, draw_costs
from losa_cache.pareto.record import FILE, Study
from losa_cache.pareto.rows import COSTS, front, rows
from losa_cache.pareto.table import cells, notes
from losa_cache.pareto.table import markdown as table
from losa_cache.sweep.report.drawing import png
from losa_cache.sweep.report.html_page import render

PNG, HTML, MARKDOWN = "pareto.png", "pareto.html", "pareto.md"
CAPTION = (
    "Test top-1 against four costs; bars are one standard deviation over seeds. Yellow: the Pareto front, of methods "
    "that no other beats in accuracy and in this cost; what lies in the shaded area is beaten by one of them. The "
    "table has the same figures."
)
CAPTION_OF_COSTS = "What each method costs; the table has the same figures."


def write_study(study: Study, folder: Path) -> None:
    """Write the record, and beside what was done the figures that follow from it, whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    told: dict[str, Any] = {"title": study.title, "rows": [row.to_json() for row in rows(study)]}
    if not study.shape_only:
        told["fronts"] = {cost.short: [row.name for row in front(rows(study), cost)] for cost in COSTS}
    _write(folder, FILE, json.dumps(with_seal(study.to_json() | told), indent=2).encode())


def write_report(study: Study, folder: Path) -> Path:
    """Write the table, the figure and the page, each whole or not at all, the page last.

    Returns:
        path of the page.

    Raises:
        UserError: without matplotlib, or if something cannot be written.
    """
    drawn = png((draw_costs if study.shape_only else draw)(rows(study), study.title))
    _write(folder, MARKDOWN, table(study).encode("utf-8", "backslashreplace"))
    _write(folder, PNG, drawn)
    _write(folder, HTML, html(study, drawn).encode())
    return folder / HTML


def html(study: Study, drawn: bytes) -> str:
    """Lay a comparison out.

    Args:
        study: the comparison.
        drawn: its figure, a PNG.
    """
    head, lines = cells(study)
    return render(
        "pareto.html",
        study.title,
        png=drawn,
        caption=CAPTION_OF_COSTS if study.shape_only else CAPTION,
        told="One line a method." if study.shape_only else "One line a method, the most accurate on top.",
        head=head,
        rows=[("", line) for line in lines],
        notes=notes(study),
    )


def _write(folder: Path, name: str, content: bytes) -> None:
    try:
        write_whole(folder / name, content)
    except OSError as error:
        raise UserError(
            f"{str(folder / name)!r} cannot be written ({error.strerror}): make room, and run the same command again."
        ) from error

"""JSON lines: an object a line, in ASCII."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from losa_cache.apply.predict.formats.base import ROWS, Format
from losa_cache.apply.predict.table import LABELS, RANKED, Rows, Table
from losa_cache.files import replacing


class JsonLines(Format):
    """``{"id": ..., "predictions": {NAME: [{"class": ..., "probability": ...}, ...]}}``, best class first.

    Several labels are all there, in their own order, each with ``predicted``.
    """

    suffix = ".jsonl"
    predictions = True

    def read(self, path: Path, table: Table) -> Iterator[Rows]:
        """Read the rows back; adapters and classes must be those of the table."""
        with open(path, encoding="utf-8") as file:
            while lines := list(islice(file, ROWS)):
                try:
                    yield table.from_cells([_cells(table, json.loads(line)) for line in lines])
                except (KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise ValueError(f"it has a line that is no row of these adapters ({error})") from error

    def write(self, path: Path, table: Table, rows: Iterator[Rows], count: int) -> None:
        """Write a line a row."""
        with replacing(path) as file:
            for part in rows:
                lines = (json.dumps(table.entry(part, place)) for place in range(len(part)))
                file.write("".join(f"{line}\n" for line in lines).encode("ascii"))


def _cells(table: Table, entry: dict[str, Any]) -> list[str]:
    """Give the cells of a flat table."""
    predictions, cells = entry["predictions"], [str(entry["id"])]
    if (names := list(predictions)) != (wanted := [answer.name for answer in table.answers]):
        raise ValueError(f"it holds predictions of {', '.join(names)[:200]} and not of {', '.join(wanted)}")
    for answer in table.answers:
        for place, own in enumerate(predictions[answer.name]):
            if answer.kind == RANKED:
                cells += [own["class"], str(own["probability"])]
            elif answer.kind == LABELS:
                if own["class"] != answer.classes[place]:
                    raise ValueError(f"it holds the label {own['class']!r} in place of {answer.classes[place]!r}")
                cells += [str(own["probability"]), str(int(own["predicted"]))]
            else:
                cells.append(str(own))
    return cells


FORMAT = JsonLines()

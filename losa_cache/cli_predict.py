"""The command line's ``predict``: parse, call, print."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from losa_cache.apply.predict.arguments import require_one_kind, split_arguments
from losa_cache.apply.predict.config import PredictConfig
from losa_cache.apply.predict.formats import find_format
from losa_cache.cli_common import Json, all_expanded, print_result
from losa_cache.cli_options import takes_options
from losa_cache.errors import UserError
from losa_cache.extract.meter import Meter
from losa_cache.text import columns

if TYPE_CHECKING:
    from losa_cache.apply.predict.table import Rows, Table

SKIPPED = 2
"""Exit code where an input was skipped; the others have their answers."""


@takes_options
def predict(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER... INPUT...",
            help="Adapters: finished runs, adapters' folders or hub:owner/name; NAME=ADAPTER gives one another name. "
            "Inputs: images, videos, folders, patterns and CSV lists of them, or one cache.",
            callback=all_expanded,
        ),
    ],
    config: PredictConfig,
    as_json: Json = False,
) -> None:
    """Predict images, videos or a cache with adapters of one backbone; exit code 2 if an input was skipped.

    With --out, run it again to resume, or to add what is new in the inputs.
    """
    if config.embed and config.out is None:
        raise UserError("--embed gives vectors, which are not printed: name a file with --out.")
    if config.out is not None:
        find_format(Path(config.out), embeds=config.embed)
    adapters, inputs = split_arguments(what)
    require_one_kind(inputs)
    from losa_cache.apply.predict.predict import predict as run
    from losa_cache.display import PredictionBar, prediction_report

    printed = _Printed(sys.stdout, as_json)  # before a bar redirects it
    on_terminal = config.out is None and sys.stdout.isatty()  # then the rows themselves show how far it is
    with nullcontext(Meter()) if on_terminal else PredictionBar() as meter:
        found = run(adapters, inputs, config=config, meter=meter, take=printed)
    report = prediction_report(found, meter)
    if found.out is not None:
        print_result(report, as_json)
    if found.skipped_count:
        raise typer.Exit(SKIPPED)


class _Printed:
    """Rows as lines of text, batch by batch: a table, or JSON lines."""

    def __init__(self, stream: TextIO, as_json: bool) -> None:
        self._stream, self._as_json, self._begun = stream, as_json, False

    def __call__(self, table: "Table", rows: "Rows") -> None:
        """Print some rows."""
        entries = [table.entry(rows, place) for place in range(len(rows))]
        text = "\n".join(map(json.dumps, entries)) if self._as_json else self._lines(entries)
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def _lines(self, entries: list[dict[str, Any]]) -> str:
        """Lay rows out: a line an input, or, where there are several adapters, a line for each."""
        named, lines = len(entries[0]["predictions"]) > 1, []
        for entry in entries:
            for name, answers in entry["predictions"].items():
                lines.append([entry["id"], *([name] if named else []), *map(_cell, answers)])
        most = max(map(len, lines))
        if not self._begun:
            heading = ["input", *(["adapter"] if named else [])]
            lines.insert(0, heading + [str(place + 1) for place in range(most - len(heading))])
        self._begun = True
        return columns([line + [""] * (most - len(line)) for line in lines])


def _cell(answer: object) -> str:
    if isinstance(answer, dict):
        return f"{answer['class']} {100 * answer['probability']:.1f} %"
    return f"{answer:.6g}"

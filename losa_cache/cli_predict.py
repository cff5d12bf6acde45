"""The command line's ``predict``: parse, call, print."""

import json
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from losa_cache.apply.predict.arguments import require_one_kind, split_arguments
from losa_cache.apply.predict.config import PredictConfig
from losa_cache.apply.predict.formats import find_format
from losa_cache.apply.predict.table import RANKED
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
        find_format(config.out, embeds=config.embed)
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
        text = "\n".join(map(json.dumps, entries)) if self._as_json else self._lines(table, entries)
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def _lines(self, table: "Table", entries: list[dict[str, Any]]) -> str:
        """Lay rows out: a line an input, or, where there are several adapters, a line for each."""
        named, lines = len(table.answers) > 1, []
        titles = _titles(table)
        for entry in entries:
            for answer in table.answers:
                cells = [_cell(own) for own in entry["predictions"][answer.name]]
                if answer.classes and answer.kind != RANKED and titles[: len(cells)] != answer.titles:
                    cells = [f"{name} {cell}" for name, cell in zip(answer.classes, cells, strict=True)]
                lines.append([entry["id"], *([answer.name] if named else []), *cells])
        if not self._begun:
            lines.insert(0, ["input", *(["adapter"] if named else []), *titles])
        self._begun = True
        most = max(map(len, lines))
        return columns([line + [""] * (most - len(line)) for line in lines])


def _titles(table: "Table") -> list[str]:
    """Head the answers: by the names of labels or numbers, if all adapters have the same; otherwise by their place."""
    longest = max((answer.titles for answer in table.answers), key=len)
    if all(answer.titles == longest[: len(answer.titles)] for answer in table.answers):
        return longest
    return [str(place + 1) for place in range(len(longest))]


def _cell(answer: object) -> str:
    if not isinstance(answer, dict):
        return f"{answer:.6g}"
    share = f"{100 * answer['probability']:.1f} %"
    if "predicted" in answer:
        return f"{'yes' if answer['predicted'] else 'no'} {share}"
    return f"{answer['class']} {share}"

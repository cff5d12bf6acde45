"""The command line's ``compare``: parse, call, print."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from losa_cache.cli_common import Device, Json, expanded
from losa_cache.cli_options import takes_options
from losa_cache.errors import no_run_or_cache
from losa_cache.folders import is_url
from losa_cache.text import say


def _existing(values: list[str]) -> list[str]:
    places = [str(expanded(value)) for value in values]
    for place in places:
        if not is_url(place) and not os.path.lexists(place):
            raise no_run_or_cache(place)
    return places


@takes_options
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|CACHE...",
            help="Directories of finished runs. A test cache among the arguments is what they are tested on (default: "
            "the one that eval takes). A training cache adds its probe; without any run, all runs below runs/ that "
            "were trained from it are compared.",
            callback=_existing,
        ),
    ],
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe", help="Also compare with the probe of the cache that the runs were trained from."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write compare.html, compare.png and compare.json to; default: nothing is written.",
            callback=expanded,
        ),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Compare runs of the tasks classification and ordinal on the same test images.

    The result has accuracies with intervals, paired tests, parameters, seconds and memory.
    """
    from losa_cache import compare as run
    from losa_cache.compare.report import write_report
    from losa_cache.compare.table import text
    from losa_cache.display import PassBar
    from losa_cache.folders import require_writable
    from losa_cache.sweep.report.drawing import require_matplotlib

    if out is not None:
        require_matplotlib()  # before anything expensive
        require_writable(out)
    with PassBar("runs tested", len(runs)) as bar:
        found = run(*runs, probe=probe, device=device, progress=bar.advance)
    written = None if out is None else write_report(found, out)
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else text(found))
    if written is not None and not as_json:
        say(f"report: {written}")

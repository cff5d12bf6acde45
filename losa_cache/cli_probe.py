"""The command line's ``probe``: parse, call, print."""

import json
from pathlib import Path
from typing import Annotated

import typer

from losa_cache.cache.registry import require_known_store
from losa_cache.cli_common import Device, Json, Residency, existing, expanded
from losa_cache.cli_options import takes_options
from losa_cache.probe.config import ProbeConfig


@takes_options
def probe(
    *,
    cache: Annotated[
        str | None,
        typer.Argument(
            help="Cache to fit: a path or URL; default: the most recent complete training cache.", callback=existing
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(help="Cache to test on; default: a known test cache of the same data set.", callback=existing),
    ] = None,
    config: ProbeConfig,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default: runs/<data set>-probe-<n>.", callback=expanded)
    ] = None,
    device: Device = None,
    residency: Residency = "auto",
    as_json: Json = False,
) -> None:
    """Tune regressions, nearest neighbours and class means on a cache's layers: what training has to beat."""
    if cache is None:
        require_known_store()
    from losa_cache.cache.store import latest_training_cache
    from losa_cache.display import PassBar, note
    from losa_cache.probe.probe import probe as run
    from losa_cache.probe.record import text
    from losa_cache.text import say

    opened = latest_training_cache(all_tokens=False) if cache is None else None
    if opened is not None:
        note(f"cache: {opened.path} (the most recent complete one)")
    with PassBar("probing", 1) as bar:
        found = run(
            cache or opened,
            test=test,
            config=config,
            out=out,
            device=device,
            residency=residency,
            progress=bar.advance,
        )
    if as_json:
        typer.echo(json.dumps({"folder": str(found.folder), **found.record.to_json()}, indent=2))
        return
    for line in text(found.record).splitlines():
        say(line)
    tested = found.record.test_cache
    say("no test cache of this data set is known: nothing was tested" if tested is None else f"tested on {tested}")
    say(f"written to {found.folder}")

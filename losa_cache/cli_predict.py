"""The command line's ``predict``: parse, call, print."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from losa_cache.apply.names import is_adapter, name_adapters
from losa_cache.apply.predict.config import PredictConfig
from losa_cache.cli_common import Json, expanded
from losa_cache.cli_options import takes_options
from losa_cache.errors import UserError

if TYPE_CHECKING:
    from losa_cache.apply.predict.predict import Predictions

SHOWN = 5


def _expanded(values: list[str]) -> list[str]:
    return [expanded(value) for value in values]


@takes_options
def predict(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER... INPUT...",
            help="Adapters: finished runs, adapters' folders, hub:owner/name; NAME=ADAPTER gives one another name. "
            "Inputs: images, videos, folders or patterns of them, .csv files with paths, caches.",
            callback=_expanded,
        ),
    ],
    config: PredictConfig,
    out: Annotated[
        Path | None,
        typer.Option(
            help=".csv, .jsonl or .parquet; with --embed .npy, .parquet or .zarr. Default: print. A file of the same "
            "adapters is added to.",
            callback=expanded,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict with trained adapters: one pass of the backbone for all of them; none where a cache is given."""
    adapters, inputs = _sorted(what)
    if config.embed and out is None:
        raise UserError("--embed gives vectors, which are not printed: pass --out FILE.npy, .parquet or .zarr.")
    from losa_cache.apply.predict.predict import predict as run
    from losa_cache.display import PassBar, note

    with PassBar("predicting", 1) as bar:
        found = run(adapters, inputs, out=out, config=config, progress=bar.advance)
    if found.skipped:
        names = ", ".join(f"{name} ({reason})" for name, reason in list(found.skipped.items())[:SHOWN])
        more = ", ..." if len(found.skipped) > SHOWN else ""
        note(f"warning: {len(found.skipped)} inputs could not be read and were skipped: {names}{more}")
    _print(found, as_json)


def _sorted(what: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell adapters from inputs."""
    adapters = [text for text in what if is_adapter(text)]
    inputs = [text for text in what if not is_adapter(text)]
    if not adapters:
        raise UserError(
            f"there is no adapter among {', '.join(map(repr, what[:SHOWN]))}: name the directory of a finished run, an "
            "adapter's folder, or hub:owner/name."
        )
    if not inputs:
        raise UserError("there is nothing to predict: name images, videos, a folder of them, or a cache.")
    name_adapters(adapters)
    return adapters, inputs


def _print(found: "Predictions", as_json: bool) -> None:
    from losa_cache.cli_common import print_result
    from losa_cache.text import columns

    if found.out is not None:
        rate = found.computed / found.seconds if found.seconds else 0.0
        figures = {"inputs": len(found.inputs), "skipped": len(found.skipped), "seconds": round(found.seconds, 3)}
        print_result({"out": str(found.out), **figures, "images_per_second": round(rate, 1)}, as_json)
    elif as_json:
        skipped = [{"input": name, "reason": reason} for name, reason in found.skipped.items()]
        typer.echo(json.dumps({"rows": found.rows, "skipped": skipped}, indent=2))
    else:
        left_out = {"rank"} if len({row["adapter"] for row in found.rows}) > 1 else {"rank", "adapter"}
        names = [name for name in found.rows[0] if name not in left_out]
        typer.echo(columns([names, *([_cell(row[name]) for name in names] for row in found.rows)]))


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)

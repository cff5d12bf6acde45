"""The command line's ``pareto``: parse, call, print."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from losa_cache.cli_common import Device, Json, existing, expanded, refuse
from losa_cache.cli_options import Values, takes_options
from losa_cache.data.names import require_data_set, require_split
from losa_cache.errors import UserError
from losa_cache.inputs_config import ImageConfig
from losa_cache.pareto.config import ParetoConfig
from losa_cache.text import say

OF_DATA = (
    *("dataset", "split", "data_dir", "columns", "clips", "normalise", "range", "channels", "page", "apply_profile"),
    *("weights", "resize", "ignore_orientation"),
)
"""Options that say nothing where costs alone are measured."""
OF_TRAINING = ("epochs", "rates", "seeds", "val_fraction", "test_split", "cache", "test_cache")


@takes_options
def pareto(
    *,
    context: typer.Context,
    images: Annotated[dict[str, Any], Values(ImageConfig)],
    config: ParetoConfig,
    cache: Annotated[
        str | None,
        typer.Option(help="Finished cache of the training split; default: it is extracted.", callback=existing),
    ] = None,
    test_cache: Annotated[
        str | None, typer.Option(help="Finished cache of the test split; default: it is extracted.", callback=existing)
    ] = None,
    shape_only: Annotated[
        bool,
        typer.Option(
            "--shape-only/--no-shape-only",
            help="Measure costs without accuracy, in minutes: a few steps of each method on random weights and noise, "
            "with 100 classes. No data set is needed.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for caches, runs, and the results: pareto.html, pareto.png, pareto.md and pareto.json; "
            "default: runs/<data set>-<backbone>-pareto, or runs/<backbone>-costs.",
            callback=expanded,
        ),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Compare methods on your backbone and data by accuracy and costs, as Fig. 4 of the paper. Run it again to resume.

    Each method's learning rate is chosen on held-out samples. Then it is trained with several seeds, and tested.
    """
    if images["backbone"] is None:
        raise UserError("pareto trains on a backbone: name it with --backbone.")
    if shape_only:
        refuse(context, "--shape-only measures costs on noise", only=(*OF_DATA, *OF_TRAINING, "workers"))
    elif images["dataset"] is None:
        raise UserError("pareto trains on images: name them with --dataset, or measure costs alone with --shape-only.")
    else:
        require_data_set(images["dataset"], images["data_dir"])
        for split in (images["split"], config.test_split):
            require_split(images["dataset"], split)
        if images["split"] == config.test_split:
            raise UserError(f"split and test-split are both {config.test_split!r}: test on another one.")
        ImageConfig(**images)  # refused before torch is imported
    from losa_cache.pareto.bar import ParetoBar
    from losa_cache.pareto.record import FILE
    from losa_cache.pareto.report import HTML
    from losa_cache.pareto.rows import rows
    from losa_cache.pareto.run import pareto as run
    from losa_cache.pareto.table import text

    place = out or _place(images, shape_only)
    with ParetoBar() as bar:
        where: dict[str, Any] = {"cache": cache, "test_cache": test_cache, "device": device}
        study = run(images, out=place, config=config, shape_only=shape_only, report=bar, **where)
    if as_json:
        typer.echo((place / FILE).read_text())
    else:
        typer.echo(text(study))
        say(f"report: {place / HTML}")
    found = rows(study)
    if all(row.error is not None and not row.top1 for row in found):
        raise UserError(
            f"no method has a result. The first, {found[0].name}: {found[0].error} Mend that, and run it again."
        )


def _place(images: dict[str, Any], shape_only: bool) -> Path:
    named = [Path(images["dataset"]).stem] if images["dataset"] is not None else []
    name = "-".join([*named, images["backbone"], "costs" if shape_only else "pareto"])
    return Path("runs") / re.sub(r"[^\w.-]", "_", name)

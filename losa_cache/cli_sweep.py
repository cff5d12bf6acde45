"""The command line's ``sweep``, ``vtab`` and ``train --auto``: parse, call, print."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from losa_cache.cache.registry import require_known_store
from losa_cache.cli_common import (
    Device,
    Json,
    Residency,
    existing,
    expanded,
    given,
    print_result,
    refuse,
    refuse_unused,
)
from losa_cache.cli_options import Values, takes_options
from losa_cache.errors import UserError
from losa_cache.folders import require_folder_of_caches, settled_path
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.space import KINDS, Choices, parse, require_trainable, split_fixed
from losa_cache.train.config import PAPER, TrainConfig, of_recipe
from losa_cache.train.sample_files import require_sample_files

PANEL = "Searched options (4,8,16; random, tpe: 1e-4..1e-2)"
SEARCHED = tuple(name for name in KINDS if name not in ("epochs", "seed"))
FIXED = (
    "task",
    "targets",
    "loss",
    "class_weights",
    "metric",
    "group_by",
    "decoder",
    "epochs",
    "sampling",
    "limit",
    "val_fraction",
    "val_ids",
)
"""Options of every trial."""
CACHES = ("val_cache", "test_cache")


def _path(text: str) -> Any:
    return typer.Option(help=text, callback=expanded)


def _caches(folder: Path) -> Path:
    place: Path = expanded(folder)
    require_folder_of_caches(place)
    return place


def sweep(
    *,
    context: typer.Context,
    cache: Annotated[
        str | None,
        typer.Option(
            help="Cache to train from: a path or URL; default: the most recent complete training cache.",
            callback=existing,
        ),
    ] = None,
    asked: Annotated[dict[str, Any], Values(TrainConfig, only=SEARCHED, listed=PANEL)],
    seeds: Annotated[
        int, typer.Option(help="Number of seeds with which every combination of a grid is trained: 0, 1, ...")
    ] = 1,
    space: Annotated[
        Path | None, _path("TOML or YAML file with more options to search, each a list of values or a range.")
    ] = None,
    options: Annotated[dict[str, Any], Values(SweepConfig)],
    recipe: Annotated[
        str, typer.Option(help="Preset of the options that are not searched: default or paper (as in train).")
    ] = "default",
    fixed: Annotated[dict[str, Any], Values(TrainConfig, only=FIXED)],
    out: Annotated[Path | None, _path("Folder of the sweep; default: runs/<data set>-sweep-<n>.")] = None,
    resume: Annotated[Path | None, _path("Folder of a sweep: continue it with its own options.")] = None,
    device: Device = None,
    residency: Residency = "auto",
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Address of a dask.distributed scheduler, tcp://HOST:PORT, whose workers train the trials; they see "
            "the caches and the sweep's folder. Default: this process trains them."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train many side networks from one pass over a cache; choose by validation, test the chosen one once, report."""
    if resume is not None:
        own = ("resume", "storage", "device", "residency", "scheduler", "as_json")
        refuse(context, "--resume goes on with a sweep's own options", but=own)
        names = list(SweepConfig.load(resume).space)
        from losa_cache.sweep.engine.run import resume_sweep, summary
        from losa_cache.sweep.report.live_table import SweepTable

        with SweepTable(names) as table:
            where: dict[str, Any] = {"device": device, "residency": residency, "scheduler": scheduler}
            found = resume_sweep(resume, report=table, storage=options["storage"], **where)
        print_result(summary(found), as_json)
        return
    alone, searched = split_fixed(asked, space, seeds)
    if given(context, "val_cache"):
        refuse(context, "--val-cache holds the samples to choose on", only=("val_fraction", "val_ids"))
    elif given(context, "val_fraction") or given(context, "val_ids"):  # an earlier sweep's cache gives way
        options["val_cache"] = None
    if given(context, "val_fraction") and not given(context, "val_ids"):
        fixed["val_ids"] = None
    if options["val_cache"] is not None:
        fixed["val_fraction"], fixed["val_ids"] = 0.0, None
    preset = {name: value for name, value in of_recipe(recipe).items() if not given(context, name)}
    base = TrainConfig(**fixed | preset | alone)
    caches = {name: str(settled_path(path)) for name in CACHES if (path := options[name]) is not None}
    refuse_unused(context, base)
    require_sample_files(base)
    require_trainable(searched, base)
    SweepConfig(cache=cache or "", space=searched, base=base, **options | caches)  # refused before torch is imported
    if cache is None:
        require_known_store()
    from losa_cache.sweep.engine.run import summary
    from losa_cache.sweep.engine.run import sweep as run
    from losa_cache.sweep.report.live_table import SweepTable

    with SweepTable(list(searched)) as table:
        found = run(
            cache,
            space=searched,
            config=base,
            out=out,
            device=device,
            residency=residency,
            scheduler=scheduler,
            report=table,
            **options | caches,
        )
    print_result(summary(found), as_json)


@takes_options
def vtab(
    folder: Annotated[
        Path, typer.Argument(help="A folder that holds the caches of VTAB-1k tasks, at any depth.", callback=_caches)
    ],
    ranks: Annotated[
        str, typer.Option(help="Ranks of the side network, in a list; each is a run of the protocol.")
    ] = "4,8,16",
    out: Annotated[
        Path, _path("Folder for a sweep for each task and rank, and for the results, vtab.json and vtab.md.")
    ] = Path("runs/vtab"),
    epochs: Annotated[int, typer.Option(help="Passes over the training samples.")] = 100,
    seeds: Annotated[int, typer.Option(help="Number of seeds with which every combination is trained: 0, 1, ...")] = 1,
    device: Device = None,
    residency: Residency = "auto",
    as_json: Json = False,
) -> None:
    """Run VTAB-1k on every task found: select on val200, train on 1,000, test once. Run it again to resume."""
    chosen = parse("rank", ranks)
    if not isinstance(chosen, Choices):
        raise UserError(f"ranks is {ranks!r}: list them, as in 4,8,16.")
    from losa_cache.display import note
    from losa_cache.sweep.report.live_table import headline
    from losa_cache.sweep.vtab.table import text
    from losa_cache.sweep.vtab.vtab import GRID
    from losa_cache.sweep.vtab.vtab import vtab as run

    def report(task: str, rank: int, standing: Any) -> None:
        if standing.finished == standing.trials:
            note(f"{task}, rank {rank}: {headline(standing)}")

    record = run(
        folder,
        ranks=chosen.values,
        out=out,
        space=GRID | ({"seed": Choices(tuple(range(seeds)))} if seeds > 1 else {}),
        config=TrainConfig(**of_recipe(PAPER) | {"epochs": epochs}),
        device=device,
        residency=residency,
        report=report,
    )
    typer.echo(json.dumps(record.to_json(), indent=2) if as_json else text(record))


def train_chosen(context: typer.Context, cache: str | None, config: TrainConfig, as_json: bool, **places: Any) -> None:
    """Train as ``train --auto``: options of the command line are not searched.

    Args:
        context: of the command line.
        cache: its path or URL.
        config: the options.
        as_json: how to print.
        places: ``out``, ``device``, ``residency`` and ``stage``, as of ``losa_cache.train``.
    """
    if cache is None:
        require_known_store()
    from losa_cache.cache.store import latest_training_cache, open_cache
    from losa_cache.display import PassBar, TrainingBar, note, training_report
    from losa_cache.sweep.engine.auto import SHARE, grid_of, train_auto

    opened = latest_training_cache(all_tokens=config.reads_all_tokens) if cache is None else open_cache(cache)
    if cache is None:
        note(f"cache: {opened.path} (the most recent complete one)")
    if not given(context, "val_fraction"):
        config = replace(config, val_fraction=SHARE)
    grid = {name: values for name, values in grid_of(config).items() if not given(context, name)}
    with PassBar("search", 1) as searching, TrainingBar(config) as bar:
        shown: dict[str, Any] = {"report": bar, "progress": bar.advance, "staging": bar.staging, "told": note}
        found = train_auto(opened, config=config, grid=grid, searching=searching.advance, **places, **shown)
    chosen = {"chosen": found.found.options, "sure": found.found.sure, "protocol": found.found.protocol}
    print_result(training_report(found.trained) | chosen, as_json)

"""The command line's ``sweep``, ``vtab`` and ``train --auto``: parse, call, print."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from losa_cache.cli_common import Device, Json, Residency, expanded, given, print_result, refuse
from losa_cache.errors import UserError
from losa_cache.folders import settled_path
from losa_cache.sidenet.spec import listed, stackable

if TYPE_CHECKING:
    from losa_cache.train.config import TrainConfig

SEARCHED = "Searched options (4,8,16; random, tpe: 1e-4..1e-2)"


def _searched(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=SEARCHED)


def _path(text: str) -> Any:
    return typer.Option(help=text, callback=expanded)


def sweep(
    context: typer.Context,
    cache: Annotated[str | None, _path("Path or URL; default: the most recent complete training cache.")] = None,
    rank: Annotated[str | None, _searched("Inner width r of every side layer.")] = None,
    lr: Annotated[str | None, _searched("Peak rate.")] = None,
    weight_decay: Annotated[str | None, _searched("Weight decay, of matrices only.")] = None,
    layers: Annotated[str | None, _searched("Numbers of evenly spaced layers, or all.")] = None,
    label_smoothing: Annotated[str | None, _searched("Label smoothing of the training loss.")] = None,
    clip_grad: Annotated[str | None, _searched("Largest norm of a step's gradient.")] = None,
    batch_size: Annotated[str | None, _searched("Samples a step.")] = None,
    side: Annotated[str | None, _searched(f"Side network: {listed(stackable(), 'or')}.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of every combination of a grid: 0, 1, ...")] = 1,
    space: Annotated[Path | None, _path("TOML or YAML: more options, each a list or a range.")] = None,
    sampler: Annotated[str, typer.Option(help="grid, random or tpe.")] = "grid",
    trials: Annotated[int | None, typer.Option(help="How many random or tpe draws.")] = None,
    pruner: Annotated[str, typer.Option(help="Stop trials early: none, halving, hyperband or median.")] = "none",
    recipe: Annotated[str, typer.Option(help="default or paper: of the options that are not searched.")] = "default",
    epochs: Annotated[int, typer.Option(help="Passes over the training samples.")] = 30,
    concurrent: Annotated[
        int | None, typer.Option(help="Trials at the same time; default: as many as memory allows.")
    ] = None,
    sampling: Annotated[str, _path("shuffle, balanced, or a CSV file of id,weight.")] = "shuffle",
    limit: Annotated[int | None, typer.Option(help="Train on so many samples.")] = None,
    val_fraction: Annotated[float, typer.Option(help="Share of the samples held out, to choose by.")] = 0.1,
    val_ids: Annotated[str | None, _path("Hold out the ids of this file, one a line.")] = None,
    val_cache: Annotated[Path | None, _path("Choose by all of this cache instead.")] = None,
    test_cache: Annotated[Path | None, _path("Default: a known test cache of the same data set.")] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train the chosen options on training and validation samples.")
    ] = False,
    tracker: Annotated[
        list[str] | None, typer.Option(help="wandb or mlflow, beside TensorBoard; may be given twice.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="URL of the study's database; default: SQLite. Its password is not stored.")
    ] = None,
    out: Annotated[Path | None, _path("Default: runs/<data set>-sweep-<n>.")] = None,
    resume: Annotated[Path | None, _path("Go on with this sweep, with its own options.")] = None,
    device: Device = None,
    residency: Residency = "auto",
    as_json: Json = False,
) -> None:
    """Train many side networks from one pass over a cache; choose by validation, test the chosen one once, report."""
    from losa_cache.sweep.engine.config import SweepConfig
    from losa_cache.sweep.engine.run import resume_sweep, summary
    from losa_cache.sweep.engine.run import sweep as run
    from losa_cache.sweep.engine.space import split_fixed
    from losa_cache.sweep.report.live_table import SweepTable
    from losa_cache.train.config import TrainConfig, of_recipe

    if resume is not None:
        own = ("resume", "storage", "device", "residency", "as_json")
        refuse(context, "--resume goes on with a sweep's own options", but=own)
        with SweepTable(list(SweepConfig.load(resume).space)) as table:
            result = resume_sweep(resume, device=device, residency=residency, report=table, storage=storage)
        print_result(summary(result), as_json)
        return
    asked = {
        "rank": rank,
        "lr": lr,
        "weight_decay": weight_decay,
        "layers": layers,
        "label_smoothing": label_smoothing,
        "clip_grad": clip_grad,
        "batch_size": batch_size,
        "side": side,
    }
    fixed, searched = split_fixed(asked, space, seeds)
    options: dict[str, Any] = {
        "epochs": epochs,
        "sampling": sampling,
        "limit": limit,
        "val_fraction": 0.0 if val_cache else val_fraction,
        "val_ids": val_ids,
    }
    preset = {name: value for name, value in of_recipe(recipe).items() if not given(context, name)}
    base = TrainConfig(**options | preset | fixed)
    with SweepTable(list(searched)) as table:
        result = run(
            cache,
            space=searched,
            config=base,
            out=out,
            device=device,
            residency=residency,
            report=table,
            sampler=sampler,
            pruner=pruner,
            trials=trials,
            concurrent=concurrent,
            storage=storage,
            trackers=tracker or [],
            val_cache=None if val_cache is None else str(settled_path(val_cache)),
            test_cache=None if test_cache is None else str(settled_path(test_cache)),
            retrain=retrain,
        )
    print_result(summary(result), as_json)


def vtab(
    folder: Annotated[Path, typer.Argument(help="Caches of VTAB-1k tasks lie anywhere below it.", callback=expanded)],
    ranks: Annotated[str, typer.Option(help="Of the side network.")] = "4,8,16",
    out: Annotated[Path, _path("A sweep for each task and rank, vtab.json and vtab.md.")] = Path("runs/vtab"),
    epochs: Annotated[int, typer.Option(help="Passes over the training samples.")] = 100,
    seeds: Annotated[int, typer.Option(help="Seeds of every combination: 0, 1, ...")] = 1,
    device: Device = None,
    residency: Residency = "auto",
    as_json: Json = False,
) -> None:
    """Run VTAB-1k on every task found: select on val200, train on 1,000, test once. Run it again to resume."""
    from losa_cache.display import note
    from losa_cache.sweep.engine.space import Choices, parse
    from losa_cache.sweep.report.live_table import headline
    from losa_cache.sweep.vtab.table import text
    from losa_cache.sweep.vtab.vtab import GRID
    from losa_cache.sweep.vtab.vtab import vtab as run
    from losa_cache.train.config import PAPER, TrainConfig, of_recipe

    own = parse("rank", ranks)
    if not isinstance(own, Choices):
        raise UserError(f"ranks is {ranks!r}: list them, as in 4,8,16.")

    def report(task: str, rank: int, standing: Any) -> None:
        if standing.finished == standing.trials:
            note(f"{task}, rank {rank}: {headline(standing)}")

    record = run(
        folder,
        ranks=own.values,
        out=out,
        space=GRID | ({"seed": Choices(tuple(range(seeds)))} if seeds > 1 else {}),
        config=TrainConfig(**of_recipe(PAPER) | {"epochs": epochs}),
        device=device,
        residency=residency,
        report=report,
    )
    typer.echo(json.dumps(record.to_json(), indent=2) if as_json else text(record))


def train_chosen(
    context: typer.Context, cache: str | None, config: "TrainConfig", as_json: bool, **places: Any
) -> None:
    """Train as ``train --auto``: options of the command line are not searched.

    Args:
        context: of the command line.
        cache: its path or URL.
        config: the options.
        as_json: how to print.
        places: ``out``, ``device``, ``residency`` and ``stage``, as of ``losa_cache.train``.
    """
    from dataclasses import replace

    from losa_cache.cache.store import latest_training_cache, open_cache
    from losa_cache.display import PassBar, TrainingBar, note, training_report
    from losa_cache.sweep.engine.auto import SHARE, grid_of, train_auto
    from losa_cache.sweep.engine.choice import sure

    opened = latest_training_cache(all_tokens=config.reads_all_tokens) if cache is None else open_cache(cache)
    if cache is None:
        note(f"cache: {opened.path} (the most recent complete one)")
    if not given(context, "val_fraction"):
        config = replace(config, val_fraction=SHARE)
    grid = {name: values for name, values in grid_of(config).items() if not given(context, name)}
    with PassBar("search", 1) as searching, TrainingBar(config.epochs) as bar:
        shown: dict[str, Any] = {"report": bar, "progress": bar.advance, "staging": bar.staging, "told": note}
        found = train_auto(opened, config=config, grid=grid, searching=searching.advance, **places, **shown)
    chosen = {"chosen": found.found.options, "sure": sure(found.found.choice), "protocol": found.found.protocol}
    print_result(training_report(found.trained) | chosen, as_json)

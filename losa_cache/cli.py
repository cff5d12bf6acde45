"""The command line: parse, call, print. One short function a verb; the work is in the library."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import losa_cache
from losa_cache.__main__ import main
from losa_cache.cache.registry import require_known_store
from losa_cache.cli_common import (
    Device,
    Json,
    Residency,
    Store,
    existing,
    existing_run,
    expanded,
    given,
    print_result,
    print_table,
    refuse,
    refuse_unused,
)
from losa_cache.cli_compare import compare
from losa_cache.cli_data import data
from losa_cache.cli_export import export
from losa_cache.cli_options import Values, takes_options
from losa_cache.cli_pareto import pareto
from losa_cache.cli_predict import predict
from losa_cache.cli_probe import probe
from losa_cache.cli_push import push
from losa_cache.cli_relocate import copy, move, remove
from losa_cache.cli_remake import merge, transcode
from losa_cache.cli_serve import serve
from losa_cache.cli_sweep import sweep, train_chosen, vtab
from losa_cache.cli_targets import targets
from losa_cache.data.names import require_data_set, require_split
from losa_cache.errors import UserError
from losa_cache.extract.config import ExtractConfig, PlanConfig, Rate
from losa_cache.inputs_config import PANEL as IMAGES
from losa_cache.options import options_of
from losa_cache.sweep.engine.config import options_of_sweep
from losa_cache.terminal import Commands
from losa_cache.train.config import TrainConfig, of_recipe
from losa_cache.train.online_config import OnlineConfig
from losa_cache.train.sample_files import require_opens, require_sample_files
from losa_cache.train.stored import options_of_run, read_run

if TYPE_CHECKING:
    from losa_cache.train.train import TrainResult

__all__ = ["app", "main"]

app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False)
OF_IMAGES = tuple(own.key for own in options_of(OnlineConfig))
OF_BLOCKS = ("layers", "start", "head", "dropout", "tap")
OF_CACHES = ("cache", "mixed", "residency", "stage")


def _path(text: str) -> Any:
    return typer.Option(help=text, callback=expanded)


def _cache(text: str) -> Any:
    return typer.Option(help=text, callback=existing)


def _scheduler(what: str) -> Any:
    return typer.Option(
        help=f"Address of a dask.distributed scheduler, tcp://HOST:PORT, whose workers {what} Default: this process."
    )


Scheduler = Annotated[str | None, _scheduler("read the shards.")]


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context,
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Run a frozen vision backbone once, cache its block outputs, train LoSA side networks from the cache."""
    if show:
        typer.echo(losa_cache.__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command()(data)


@app.command()
@takes_options
def plan(context: typer.Context, config: PlanConfig, rate: Rate, as_json: Json = False) -> None:
    """Measure what extract would cost with the same options, and whether it pays; nothing is kept on the disk."""
    config = replace(config, precision=_precision(context, config, rate))
    from losa_cache import plan_extraction

    print_result(plan_extraction(config=config), as_json)


@app.command()
@takes_options
def extract(
    context: typer.Context,
    config: ExtractConfig,
    rate: Rate,
    scheduler: Annotated[
        str | None, _scheduler("extract; they must see the cache and the data set at the same paths.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the frozen backbone once and write every block's activations to a cache. Run it again to resume."""
    config = replace(config, precision=_precision(context, config, rate))
    from losa_cache import extract as run
    from losa_cache.display import ExtractionBar, extraction_report, in_words

    with ExtractionBar() as bar:
        cache = run(config=config, scheduler=scheduler, meter=bar)
    report = extraction_report(cache, bar)
    print_result(report if as_json else in_words(report), as_json)


def _precision(context: typer.Context, config: PlanConfig, rate: Rate) -> str:
    """Give the precision that --precision, --bits or --error names."""
    if rate.bits is None and rate.error is None:
        return config.precision
    others = ("precision",) if rate.error is None else ("precision", "bits")
    refuse(context, "--bits and --error each say how values are stored", only=others)
    return f"predict:{rate.bits:g}" if rate.error is None else f"predict:{100 * rate.error:g}%"


def train(
    *,
    context: typer.Context,
    cache: Annotated[
        str | None, _cache("Cache to train from: a path or URL; default: the most recent complete training cache.")
    ] = None,
    config: TrainConfig,
    recipe: Annotated[
        str,
        typer.Option(
            help="Preset of options: default, or paper (the paper's classifier, --head last, and the options of "
            "the VTAB-1k literature). Options that you give override it."
        ),
    ] = "default",
    auto: Annotated[
        bool,
        typer.Option(
            "--auto/--no-auto",
            help="First search --lr and --weight-decay, unless you give them, by validation on held-out samples "
            "(--val-fraction; by default a fifth of the samples at a time). Then train on all samples.",
        ),
    ] = False,
    out: Annotated[Path | None, _path("Run directory; default: runs/<data set>-<side or method>-<n>.")] = None,
    device: Device = None,
    residency: Residency = "auto",
    stage: Annotated[
        Path | None, _path("Folder on a fast local disk: copy the cache there once, and train from the copy.")
    ] = None,
    resume: Annotated[Path | None, _path("Run directory: continue this run with its own options.")] = None,
    online: Annotated[
        bool,
        typer.Option(
            "--online/--no-online", help="Do not use a cache: run the backbone on every batch.", rich_help_panel=IMAGES
        ),
    ] = False,
    mixed: Annotated[
        float | None,
        typer.Option(
            help="Share of every batch, between 0 and 1, for which the backbone is run on fresh images; the "
            "rest comes from the cache.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    images: Annotated[dict[str, Any], Values(OnlineConfig)],
    as_json: Json = False,
) -> None:
    """Train a side network from a cache, without the backbone; or with the backbone, by --online.

    --online --method NAME trains inside the backbone, as the methods do that LoSA is compared with.
    """
    if images["dataset"] is not None:
        require_data_set(images["dataset"], images["data_dir"])
        require_split(images["dataset"], images["split"])
    if resume is not None:
        taken = ("resume", "device", "residency", "stage", "as_json")
        refuse(context, "--resume goes on with a run's own options", but=taken)
        _resume(resume, as_json, device=device, residency=residency, stage=stage)
        return
    if given(context, "val_ids"):
        refuse(context, "--val-ids says what is held out", only=("val_fraction",))
    elif given(context, "val_fraction"):  # an earlier run's list gives way
        config = replace(config, val_ids=None)
    online, mixed = _fresh(context, online, mixed)
    _refuse_beside_method(context, config, auto=auto, online=online)
    refuse_unused(context, config)
    config = replace(config, **{name: value for name, value in of_recipe(recipe).items() if not given(context, name)})
    require_sample_files(config)
    if auto:
        only = ("online", "mixed", *OF_IMAGES) if online else ("mixed", *OF_IMAGES)
        refuse(context, "--auto chooses from a cache", only=only)
        if online or mixed is not None:  # given, or stored by an earlier run
            raise UserError("--auto chooses from a cache, without the backbone: pass --no-online and --cache.")
        train_chosen(context, cache, config, as_json, out=out, device=device, residency=residency, stage=stage)
        return
    fresh = None
    if online or mixed is not None:
        if online and mixed is not None:
            raise UserError(f"--online is --mixed 1: leave one of --online and --mixed {mixed} out.")
        if images["backbone"] is None or images["dataset"] is None:
            raise UserError("--online and --mixed run the backbone on images: name them with --backbone and --dataset.")
        fresh = OnlineConfig(**images, share=1.0 if mixed is None else mixed)
    else:
        refuse(context, "without --online or --mixed a cache serves the images it has", only=OF_IMAGES)
    if cache is None and not online:
        require_known_store()
    from losa_cache.cache.store import latest_training_cache, open_cache
    from losa_cache.display import TrainingBar, note
    from losa_cache.train.train import train as run

    opened = open_cache(cache) if cache is not None else None
    if opened is None and not online:
        opened = latest_training_cache(all_tokens=config.reads_all_tokens or fresh is not None)
        note(f"cache: {opened.path} (the most recent complete one)")
    with TrainingBar(config) as bar:
        shown: dict[str, Any] = {"report": bar, "progress": bar.advance, "staging": bar.staging}
        places: dict[str, Any] = {"out": out, "device": device, "residency": residency, "stage": stage}
        result = run(opened, online=fresh, config=config, **places, **shown)
    _print_training(result, as_json)


def _refuse_beside_method(context: typer.Context, config: TrainConfig, *, auto: bool, online: bool) -> None:
    """Refuse options that a method leaves nothing to do.

    Raises:
        UserError: naming the option.
    """
    if given(context, "method"):
        refuse(context, f"--method {context.params['method']} says what is trained", only=("side",))
    if config.trains is None:
        return
    method = f"--method {config.trains}"
    if auto:
        raise UserError(f"--auto chooses from a cache, and {method} trains inside the backbone: leave one of them out.")
    if not online:
        raise UserError(f"{method} trains inside the backbone, which a cache cannot replace: use --online.")
    refuse(context, f"{method} trains inside the backbone, whose last output a classifier reads", only=OF_BLOCKS)
    refuse(context, f"{method} trains inside the backbone, which a cache cannot replace", only=OF_CACHES)


def _fresh(context: typer.Context, online: bool, mixed: float | None) -> tuple[bool, float | None]:
    """Let what an earlier run stores of --online and --mixed give way to the other of them."""
    if given(context, "mixed") and not given(context, "online"):
        return False, mixed
    if given(context, "online") and not given(context, "mixed"):
        return online, None
    return online, mixed


def _resume(run: Path, as_json: bool, **places: Any) -> None:
    """Continue a run; ``places`` as of ``losa_cache.resume``."""
    config, _, _ = read_run(run)
    from losa_cache.display import TrainingBar
    from losa_cache.train.train import resume

    with TrainingBar(config) as bar:
        shown: dict[str, Any] = {"report": bar, "progress": bar.advance, "staging": bar.staging}
        result = resume(run, **places, **shown)
    _print_training(result, as_json)


def _print_training(result: "TrainResult", as_json: bool) -> None:
    from losa_cache.display import telling, training_report
    from losa_cache.sidenet.adapter_file import load_adapter_config

    report = training_report(result)
    print_result(report if as_json else telling(report, len(load_adapter_config(result.run)["classes"])), as_json)


app.command()(takes_options(train, stored=options_of_run))
app.command()(probe)
app.command()(takes_options(sweep, stored=options_of_sweep))
app.command()(vtab)


@app.command(name="eval")
@takes_options
def evaluate(
    run: Annotated[
        Path, typer.Argument(help="A finished run, an adapter's folder, or hub:owner/name.", callback=existing_run)
    ],
    cache: Annotated[
        str | None,
        _cache("Cache to evaluate on: a path or URL; default: a known cache of a held-out split of the same data set."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="For a run that was trained online: evaluate on this split of its data set, by running the backbone."
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        _path(
            "Groups over which means are reported, too: a target set of classes in the cache, or a CSV file with the "
            "heading id,group; default: those of the run."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        _path("Folder for a report: all metrics with intervals, tables as CSV, charts, and one HTML file of them."),
    ] = None,
    images: Annotated[
        Path | None,
        _path("Folder of the data set: a report of masks or depth maps shows the images behind them."),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Evaluate a run's adapter: all metrics of its task, and an interval of the one that trials are chosen by."""
    if group_by is not None and group_by.endswith(".csv"):
        require_opens(group_by, "group-by")
    from losa_cache import evaluate_run
    from losa_cache.display import PassBar, telling
    from losa_cache.files import without_nan

    shown: dict[str, Any] = {"group_by": group_by, "report": report, "images": images}
    with PassBar("evaluating", 1) as bar:
        result = evaluate_run(run, cache=cache, split=split, device=device, **shown, progress=bar.advance)
    tables = result.pop("tables")
    if as_json:
        print_result(without_nan(result | {"tables": tables}), as_json)
    else:
        print_result(telling(result, len(tables.get("classes", ()))), as_json)
        for name, lines in tables.items():
            print_table(name, lines)


app.command()(predict)
app.command()(compare)
app.command()(pareto)
app.command()(serve)
app.command()(push)
app.command()(export)
app.command()(targets)
app.command()(transcode)
app.command()(merge)
app.command()(copy)
app.command()(move)
app.command()(remove)


@app.command()
@takes_options
def inspect(
    cache: Store,
    full: Annotated[
        bool,
        typer.Option("--full/--no-full", help="Compute the statistics over all shards, not only over the first two."),
    ] = False,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Describe a cache, complete or not: shape, precision, size, statistics, classes."""
    from losa_cache.cache.inspect import inspect_cache
    from losa_cache.display import PassBar

    with PassBar("reading", 1) as bar:
        description = inspect_cache(cache, full=full, scheduler=scheduler, progress=bar.advance)
    print_result(description, as_json)


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List the caches that this user made."""
    from losa_cache.cache.inspect import list_caches
    from losa_cache.display import cache_table

    caches = list_caches()
    typer.echo(json.dumps(caches, indent=2) if as_json else cache_table(caches))


@app.command()
@takes_options
def verify(
    cache: Store,
    recompute: Annotated[
        int, typer.Option(help="Number of random rows to compute again by the backbone, and to compare with the cache.")
    ] = 0,
    repair: Annotated[
        bool, typer.Option("--repair/--no-repair", help="Repair the cache: only damaged samples are computed again.")
    ] = False,
    data_dir: Annotated[
        Path | None, _path("Folder that holds the data set now; default: the one of the extraction.")
    ] = None,
    weights: Annotated[
        str | None, _path("File of the backbone's weights now; default: the one of the extraction.")
    ] = None,
    device: Device = None,
    scheduler: Scheduler = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of rows for --recompute.")] = 0,
    as_json: Json = False,
) -> None:
    """Check every checksum and receipt of a cache; exit code 1 if something is damaged."""
    from losa_cache import verify_cache
    from losa_cache.display import PassBar

    with PassBar("checking", 1) as bar:
        result = verify_cache(
            cache,
            recompute=recompute,
            repair=repair,
            data_dir=data_dir,
            weights=weights,
            device=device,
            scheduler=scheduler,
            seed=seed,
            progress=bar.advance,
        )
    print_result(result, as_json)
    if not result["intact"]:
        raise typer.Exit(1)

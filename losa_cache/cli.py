"""The command line: parse, call, print. One short function a verb; the work is in the library."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import losa_cache
from losa_cache.__main__ import main
from losa_cache.cli_common import Device, Json, Residency, expanded, given, print_result, refuse
from losa_cache.cli_compare import compare
from losa_cache.cli_probe import probe
from losa_cache.cli_sweep import sweep, train_chosen, vtab
from losa_cache.data.names import require_data_dir
from losa_cache.errors import UserError
from losa_cache.sidenet.spec import SIDES, listed
from losa_cache.terminal import Commands

__all__ = ["app", "main"]

app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False)
IMAGES = "Backbone and images"
PLAN = "Say what the same options of extract would cost, and whether it pays: measured, before anything is written."
ONLINE_OPTIONS = (
    *("backbone", "dataset", "split", "data_dir", "weights", "img_size", "resize", "tap", "precision"),
    *("workers", "augment", "mixup", "cutmix", "reprob", "frames", "stride", "inflation", "clips"),
    *("ignore_orientation",),
)


def _images(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=IMAGES, callback=expanded)


def _path(text: str) -> Any:
    return typer.Option(help=text, callback=expanded)


_BACKBONE = _images("vit_s vit_b vit_l vit_h vit_g vit_G vit_e vit_digits, a timm ViT; vivit_s ... for video.")
_DATASET = _images("digits, folder, places365, kinetics400, vtab, a torchvision set, or a folder's path.")
Split = Annotated[str, _images("train, val or test, as far as the data set has them; vtab: train800val200, test.")]
DataDir = Annotated[Path | None, _images("Where the data set lies.")]
Weights = Annotated[str, _images("pretrained, random, a safetensors/pth/npz file, or a ViViT's folder.")]
ImgSize = Annotated[int | None, _images("Pixels of the input; default: the backbone's own.")]
Resize = Annotated[str, _images("crop (timm's data config) or exact (no crop).")]
Frames = Annotated[int | None, _images("Of a video: frames a clip; default: 32.")]
Stride = Annotated[int | None, _images("Of a video: every how many frames; 0: spread over all of it; default: 2.")]
ImageDecoder = Annotated[
    str, _images("pillow, or nvjpeg: JPEG files on the GPU, for few CPU cores; pixels differ a bit.")
]
IgnoreOrientation = Annotated[
    bool,
    _images("Leave pictures as stored, as timm does: not turned as EXIF or the video says.", "--ignore-orientation"),
]
Inflation = Annotated[str, _images("Of an image ViT's patch kernel to tubelets: central or averaged.")]
Clips = Annotated[int, _images("Of a video: clips, evenly spaced; training takes one an epoch, evaluation averages.")]
Limit = Annotated[int | None, _images("Keep so many samples, drawn at random.")]
Workers = Annotated[int | None, _images("Threads (processes, to augment) that decode; default: one a core.")]
Augment = Annotated[str | None, _images("timm's name: rand-m9-mstd0.5-inc1, augmix-m3-w3, 3a; or crop.")]
Store = Annotated[str, typer.Argument(help="The .zarr folder, or its URL.", callback=expanded)]
Scheduler = Annotated[str | None, typer.Option(help="Of dask.distributed, tcp://HOST:PORT; default: threads.")]


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


@app.command(name="plan", help=PLAN)
@app.command()
def extract(
    context: typer.Context,
    backbone: Annotated[str, _BACKBONE],
    dataset: Annotated[str, _DATASET],
    split: Split = "train",
    data_dir: DataDir = None,
    out: Annotated[str | None, _path("The .zarr to write, or its URL; default: below $LOSA_CACHE_HOME/caches.")] = None,
    weights: Weights = "pretrained",
    img_size: ImgSize = None,
    resize: Resize = "crop",
    layers: Annotated[
        str, typer.Option(help="all, K evenly spaced with the last among them, or a list: 3,6,12.")
    ] = "all",
    tap: Annotated[str, _images("block, attention, mlp or both: what of each layer.")] = "block",
    embedding: Annotated[bool, _images("Also store the first block's input.", "--embedding")] = False,
    tokens: Annotated[
        str, _images("all, or pooled: of each layer only the class token and the mean of the patches, for probes.")
    ] = "all",
    precision: Annotated[
        str,
        _images("float32, float16, bfloat16, int8, int4, predict:BITS (predict:1.5) or predict:ERROR% (predict:20%)."),
    ] = "bfloat16",
    bits: Annotated[float | None, _images("Predict each layer, spend so many bits a value: 2, 1, 0.5.")] = None,
    error: Annotated[float | None, _images("Predict each layer, allow such a relative error: 0.2.")] = None,
    limit: Limit = None,
    views: Annotated[int, _images("Rows a sample: the plain image, and V - 1 augmentations of it.")] = 1,
    augment: Augment = None,
    clips: Clips = 1,
    frames: Frames = None,
    stride: Stride = None,
    inflation: Inflation = "central",
    decoder: ImageDecoder = "pillow",
    ignore_orientation: IgnoreOrientation = False,
    batch_size: Annotated[int | None, typer.Option(help="Images a forward pass; default: at most 64.")] = None,
    device: Device = None,
    workers: Workers = None,
    max_device_memory: Annotated[
        str | None, typer.Option(help="4GB, 1.5GiB: stream a larger backbone through the device; default: if it must.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the samples' order, their augmentation, and random weights.")] = 0,
    on_error: Annotated[str, typer.Option(help="stop at an image that does not decode, or skip and list it.")] = "stop",
    as_json: Json = False,
) -> None:
    """Run the frozen backbone once and write every block's activations to a cache. Run it again to resume."""
    require_data_dir(dataset, data_dir)  # before the imports, which take seconds
    from losa_cache import extract as run
    from losa_cache import plan_extraction
    from losa_cache.display import ExtractionBar, extraction_report

    if bits is not None or error is not None:
        others = ("precision",) if error is None else ("precision", "bits")
        refuse(context, "--bits and --error each say how values are stored", only=others)
        precision = f"predict:{bits:g}" if error is None else f"predict:{100 * error:g}%"
    options: dict[str, Any] = {
        "split": split,
        "data_dir": data_dir,
        "out": out,
        "weights": weights,
        "img_size": img_size,
        "resize": resize,
        "layers": layers,
        "tap": tap,
        "embedding": embedding,
        "tokens": tokens,
        "precision": precision,
        "limit": limit,
        "views": views,
        "augment": augment,
        "clips": clips,
        "frames": frames,
        "stride": stride,
        "inflation": inflation,
        "decoder": decoder,
        "ignore_orientation": ignore_orientation,
        "batch_size": batch_size,
        "device": device,
        "workers": workers,
        "max_device_memory": max_device_memory,
        "seed": seed,
    }
    if context.info_name == "plan":
        print_result(plan_extraction(backbone, dataset, **options), as_json)
        return
    with ExtractionBar() as bar:
        cache = run(backbone, dataset, on_error=on_error, meter=bar, **options)
    print_result(extraction_report(cache, bar), as_json)


@app.command()
def train(
    context: typer.Context,
    cache: Annotated[str | None, _path("A path or URL; default: the most recent complete training cache.")] = None,
    side: Annotated[str, typer.Option(help=f"Side network: {listed(list(SIDES), 'or')}.")] = "losa",
    rank: Annotated[int, typer.Option(help="Inner width r of the side network, if it has one.")] = 16,
    layers: Annotated[str, typer.Option(help="Of the cached blocks: all, K evenly spaced, or a list.")] = "all",
    start: Annotated[
        str, typer.Option(help="What the side network refines: output (y_0 = b_L) or embedding (b_0).")
    ] = "output",
    recipe: Annotated[
        str,
        typer.Option(
            help="default, or paper: the paper's classifier (--head last) and the options of the VTAB-1k literature. "
            "Options that you give override it."
        ),
    ] = "default",
    head: Annotated[
        str,
        typer.Option(
            help="What the classifier reads: all (class token and mean of every layer, beside the side network's "
            "output), or last (the side network's output alone, as in the paper)."
        ),
    ] = "all",
    epochs: Annotated[int, typer.Option(help="Passes over the training samples.")] = 30,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; default: the side network's own.")] = None,
    weight_decay: Annotated[float, typer.Option(help="Weight decay, of matrices only.")] = 1e-2,
    batch_size: Annotated[int, typer.Option(help="Samples a step.")] = 64,
    label_smoothing: Annotated[float, typer.Option(help="Label smoothing of the training loss.")] = 0.1,
    dropout: Annotated[
        float, typer.Option(help="Share of what the side network adds that a training step drops (--head all).")
    ] = 0.1,
    clip_grad: Annotated[float, typer.Option(help="Largest norm of a step's gradient.")] = 1.0,
    val_fraction: Annotated[float, typer.Option(help="Share of the samples held out, by a hash of their ids.")] = 0.1,
    val_ids: Annotated[Path | None, _path("File of ids, one a line: hold out exactly these.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Train on so many of the cache's samples, by a hash of their ids, beside the same held-out ones. "
            "--online without --cache: load so many in all, drawn at random."
        ),
    ] = None,
    sampling: Annotated[
        str, _path("shuffle, balanced (classes), or a CSV file of weights, headed id,weight.")
    ] = "shuffle",
    seed: Annotated[int, typer.Option(help="Of the start, the order and the augmentation.")] = 0,
    auto: Annotated[
        bool,
        typer.Option(
            "--auto",
            help="First choose lr and weight-decay, unless given, on held-out samples (--val-fraction, by default a "
            "fifth at a time); then train on all samples.",
        ),
    ] = False,
    out: Annotated[Path | None, _path("Run directory; default: runs/<data set>-<side>-<n>.")] = None,
    device: Device = None,
    residency: Residency = "auto",
    stage: Annotated[Path | None, _path("Copy the cache to this folder once; train from the copy.")] = None,
    resume: Annotated[Path | None, _path("Continue this run, with its own options.")] = None,
    online: Annotated[bool, _images("Run the backbone on every batch.", "--online")] = False,
    mixed: Annotated[float | None, _images("Share of a batch that is fresh; the rest is cached.")] = None,
    backbone: Annotated[str | None, _BACKBONE] = None,
    dataset: Annotated[str | None, _DATASET] = None,
    split: Split = "train",
    data_dir: DataDir = None,
    weights: Weights = "pretrained",
    img_size: ImgSize = None,
    resize: Resize = "crop",
    tap: Annotated[str | None, _images("block, attention, mlp or both; default: the cache's, or block.")] = None,
    precision: Annotated[str | None, _images("Of block outputs; default: the cache's, or bfloat16.")] = None,
    workers: Workers = None,
    augment: Augment = None,
    mixup: Annotated[float, _images("Alpha of mixup; 0: none.")] = 0.0,
    cutmix: Annotated[float, _images("Alpha of cutmix; 0: none.")] = 0.0,
    reprob: Annotated[float, _images("Probability of random erasing.")] = 0.0,
    clips: Clips = 1,
    frames: Frames = None,
    stride: Stride = None,
    inflation: Inflation = "central",
    ignore_orientation: IgnoreOrientation = False,
    as_json: Json = False,
) -> None:
    """Train a side network from a cache, without the backbone; or --online, with it."""
    if dataset is not None:
        require_data_dir(dataset, data_dir)
    from losa_cache import OnlineConfig, TrainConfig
    from losa_cache.cache.store import latest_training_cache, open_cache
    from losa_cache.display import TrainingBar, note, training_report
    from losa_cache.train.config import of_recipe
    from losa_cache.train.run import Run
    from losa_cache.train.train import resume as resume_run
    from losa_cache.train.train import train as run

    if resume is not None:
        taken = ("resume", "device", "residency", "stage", "as_json")
        refuse(context, "--resume goes on with a run's own options", but=taken)
        with TrainingBar(Run(resume).config()[0].epochs) as bar:
            shown: dict[str, Any] = {"report": bar, "progress": bar.advance, "staging": bar.staging}
            result = resume_run(resume, device=device, residency=residency, stage=stage, **shown)
        print_result(training_report(result), as_json)
        return
    if val_ids is not None:
        refuse(context, "--val-ids says what is held out", only=("val_fraction",))
    cached = cache is not None or not online
    options: dict[str, Any] = {
        "side": side,
        "rank": rank,
        "layers": layers,
        "start": start,
        "head": head,
        "epochs": epochs,
        "lr": lr,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "label_smoothing": label_smoothing,
        "dropout": dropout,
        "clip_grad": clip_grad,
        "sampling": sampling,
        "limit": limit if cached else None,
        "val_fraction": val_fraction,
        "val_ids": None if val_ids is None else str(val_ids),
        "seed": seed,
    }
    preset = {name: value for name, value in of_recipe(recipe).items() if not given(context, name)}
    config = TrainConfig(**options | preset)
    if auto:
        refuse(context, "--auto chooses from a cache", only=("online", "mixed", *ONLINE_OPTIONS))
        train_chosen(context, cache, config, as_json, out=out, device=device, residency=residency, stage=stage)
        return
    fresh = None
    if online or mixed is not None:
        if online and mixed is not None:
            raise UserError(f"--online is --mixed 1: leave one of --online and --mixed {mixed} out.")
        if backbone is None or dataset is None:
            raise UserError("--online and --mixed run the backbone on images: name them with --backbone and --dataset.")
        fresh = OnlineConfig(
            backbone=backbone,
            dataset=dataset,
            split=split,
            data_dir=None if data_dir is None else str(data_dir),
            weights=weights,
            img_size=img_size,
            resize=resize,
            limit=None if cached else limit,
            tap=tap,
            precision=precision,
            workers=workers,
            share=1.0 if mixed is None else mixed,
            augment=augment,
            mixup=mixup,
            cutmix=cutmix,
            reprob=reprob,
            clips=clips,
            frames=frames,
            stride=stride,
            inflation=inflation,
            ignore_orientation=ignore_orientation,
        )
    else:
        refuse(context, "without --online or --mixed a cache serves the images it has", only=ONLINE_OPTIONS)
    opened = open_cache(cache) if cache is not None else None
    if opened is None and not online:
        opened = latest_training_cache(all_tokens=config.reads_all_tokens or fresh is not None)
        note(f"cache: {opened.path} (the most recent complete one)")
    with TrainingBar(config.epochs) as bar:
        shown = {"report": bar, "progress": bar.advance, "staging": bar.staging}
        places: dict[str, Any] = {"out": out, "device": device, "residency": residency, "stage": stage}
        result = run(opened, online=fresh, config=config, **places, **shown)
    print_result(training_report(result), as_json)


app.command()(probe)
app.command()(sweep)
app.command()(vtab)


@app.command(name="eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run's directory.", callback=expanded)],
    cache: Annotated[str | None, _path("A path or URL; default: a held-out cache of the same data set.")] = None,
    split: Annotated[str | None, typer.Option(help="Of an online run's data set: run the backbone over it.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Evaluate a run's adapter: top-1, top-5 and loss."""
    from losa_cache import evaluate_run
    from losa_cache.display import PassBar

    with PassBar("evaluating", 1) as bar:
        result = evaluate_run(run, cache=cache, split=split, device=device, progress=bar.advance)
    print_result(result, as_json)


app.command()(compare)


@app.command()
def inspect(
    cache: Store,
    full: Annotated[bool, typer.Option("--full", help="Statistics over all shards, not the first two.")] = False,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Say what is in a cache, complete or not."""
    from losa_cache.cache.inspect import inspect_cache
    from losa_cache.display import PassBar

    with PassBar("reading", 1) as bar:
        found = inspect_cache(cache, full=full, scheduler=scheduler, progress=bar.advance)
    print_result(found, as_json)


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """Show the caches that this user made."""
    from losa_cache.cache.inspect import list_caches
    from losa_cache.display import cache_table

    found = list_caches()
    typer.echo(json.dumps(found, indent=2) if as_json else cache_table(found))


@app.command()
def verify(
    cache: Store,
    recompute: Annotated[int, typer.Option(help="Run so many random rows through the backbone again.")] = 0,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what is damaged; only that is computed again.")
    ] = False,
    data_dir: Annotated[Path | None, _path("Where the images lie now; default: as at extraction.")] = None,
    weights: Annotated[str | None, _path("Where the weights lie now; default: as at extraction.")] = None,
    device: Device = None,
    scheduler: Scheduler = None,
    seed: Annotated[int, typer.Option(help="Of the choice of rows.")] = 0,
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

"""``extract``: a backbone and a data set to a cache."""

import logging
from dataclasses import replace
from pathlib import Path

from losa_cache.backbone import Backbone
from losa_cache.backbone.model import PRETRAINED, RANDOM
from losa_cache.cache.layout import SHARD_BYTES
from losa_cache.cache.location import Location, locate
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.registry import remember
from losa_cache.cache.storage import StorePath
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.data.load import is_name
from losa_cache.data.samples import Samples
from losa_cache.errors import UserError, require_counts
from losa_cache.extract import pipeline
from losa_cache.extract.create_cache import create_cache, sources_of
from losa_cache.extract.meter import Meter
from losa_cache.extract.plan import cache_name, default_batch
from losa_cache.folders import home
from losa_cache.inputs import open_inputs
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device, default_workers
from losa_cache.machine.memory import parse_bytes
from losa_cache.points import ALL

log = logging.getLogger(__name__)


def extract(
    backbone: str | Backbone,
    dataset: str | Samples,
    *,
    split: str = "train",
    data_dir: str | Path | None = None,
    out: str | Location | None = None,
    weights: str | Path = "pretrained",
    img_size: int | None = None,
    resize: str = "crop",
    layers: str | int | list[int] = "all",
    tap: str = "block",
    embedding: bool = False,
    tokens: str = ALL,
    precision: str = "bfloat16",
    limit: int | None = None,
    views: int = 1,
    augment: str | None = None,
    clips: int = 1,
    frames: int | None = None,
    stride: int | None = None,
    inflation: str = "central",
    decoder: str = "pillow",
    ignore_orientation: bool = False,
    batch_size: int | None = None,
    device: str | None = None,
    workers: int | None = None,
    seed: int = 0,
    on_error: str = "stop",
    max_device_memory: str | int | None = None,
    shard_bytes: int = SHARD_BYTES,
    meter: Meter | None = None,
) -> ActivationCache:
    """Run a frozen backbone once over a data set and write its block outputs to a cache.

    A cache of the same identity at ``out`` is resumed, or returned at once if it is complete. Sets the process's malloc
    to keep freed memory (``losa_cache.machine.allocator``).

    Args:
        backbone: a name (``load_backbone``) or a loaded backbone, for which ``weights``, ``img_size`` and ``resize``
            are not used.
        dataset: a name (``load_samples``) or loaded samples, for which ``split`` and ``data_dir`` are not used.
        split, data_dir: which part of the data set, and where it lies.
        out: the ``.zarr`` folder, or its URL (``s3://bucket/x.zarr``); by default below ``$LOSA_CACHE_HOME/caches``,
            named by content and identity.
        weights, img_size, resize: of the backbone; of a video backbone also
        frames, stride, inflation: as of ``load_backbone``.
        layers: ``"all"``, K evenly spaced, or block numbers.
        tap: what of each of these: its output (``block``), or what its ``attention``, its ``mlp`` or ``both`` add to
            it; the last block's output comes along in any case.
        embedding: also store the input of the first block, b_0.
        tokens: ``all``, or ``pooled``: of each point only the class token and the mean of the patches, each token
            layer-normed first, and the features of the frozen tail (*not from the paper*). Linear probes need no more.
        precision: ``float32``, ``float16``, ``bfloat16``, ``int8``, ``int4``, ``predict:BITS`` or ``predict:ERROR%``;
            of pooled rows one of the first four.
        limit: keep so many samples, drawn at random.
        views: rows a sample, 1 or more: the first is the plain image, the others are augmented.
        augment: with several views, timm's name of their augmentation (``rand-m9-mstd0.5-inc1``, ``crop``, ...).
        clips: rows a video, 1 or more, evenly spaced over it.
        decoder: of image files: ``pillow``, or ``nvjpeg``: JPEG files are decoded and resized on the GPU, where CPU
            cores are few. Pixels differ a little, so this is a part of the identity.
        ignore_orientation: leave pictures as they are stored, as timm and torchvision do, instead of turning them as
            their EXIF orientation or their video's display matrix says.
        batch_size: images a forward pass; by default at most 64 and 512 MiB of activations, and what fits
            ``max_device_memory``. Results are those of this batch size, whatever the memory.
        device: ``cpu``, ``cuda``, ``cuda:1``; by default the GPU where there is one.
        workers: decoding threads; by default one a core, at most 16.
        seed: of the order of the samples, of their augmentation, and of random weights.
        on_error: ``stop`` at an image that does not decode, or ``skip``, count and list it.
        max_device_memory: ``"4GB"``, ``"1.5GiB"`` or bytes that backbone and forward pass may take of the device. What
            does not fit stays on the host (of a safetensors file given as ``weights``: on the disk) and streams through
            the device in groups of blocks, once for many batches, which are collected on the host: up to 1024 images
            that take a quarter of its free memory. By default 80 % of the device's free memory, where the backbone is
            larger than that; else nothing is streamed. No part of the cache's identity.
        shard_bytes: aimed-at size of a shard, the unit of commit and of resume.
        meter: is told of progress.

    Raises:
        UserError: for any input that cannot work, in one sentence.
    """
    if on_error not in ("stop", "skip"):
        raise UserError(f"on-error is {on_error!r}: choose stop or skip.")
    require_counts(batch_size=batch_size, workers=workers)
    place = locate(home() / "caches" if out is None else out)  # what cannot be is said before anything is opened
    keep_freed_memory()
    inputs = open_inputs(
        backbone,
        dataset,
        split=split,
        data_dir=data_dir,
        weights=weights,
        img_size=img_size,
        resize=resize,
        layers=layers,
        tap=tap,
        embedding=embedding,
        tokens=tokens,
        precision=precision,
        limit=limit,
        seed=seed,
        device=choose_device(device),
        views=views,
        augment=augment,
        clips=clips,
        frames=frames,
        stride=stride,
        inflation=inflation,
        decoder=decoder,
        ignore_orientation=ignore_orientation,
        max_device_memory=None if max_device_memory is None else parse_bytes(max_device_memory),
    )
    path = locate(place / cache_name(inputs.manifest)) if out is None else place
    _note_older(path, inputs.manifest)
    batch_size = batch_size or inputs.backbone.fitting_batch(default_batch(inputs), inputs.compute)
    inputs.backbone.groups(batch_size, inputs.compute)  # a budget that is too small is refused
    workers = workers or default_workers()
    named = isinstance(backbone, str) and isinstance(dataset, str)
    options = {
        "backbone": backbone,
        "dataset": str(Path(dataset).absolute()) if isinstance(dataset, str) and not is_name(dataset) else dataset,
        "split": split,
        "data_dir": None if data_dir is None else str(Path(data_dir).absolute()),
        "weights": str(weights) if str(weights) in (PRETRAINED, RANDOM) else str(Path(weights).absolute()),
        "img_size": img_size,
        "resize": resize,
        "layers": layers,
        "tap": tap,
        "embedding": embedding,
        "tokens": tokens,
        "precision": precision,
        "limit": limit,
        "seed": seed,
        "views": views,
        "augment": augment,
        "clips": clips,
        "frames": frames,
        "stride": stride,
        "inflation": inflation,
        "decoder": decoder,
        "ignore_orientation": ignore_orientation,
        "batch_size": batch_size,
    }
    kept = options if named else None
    meter = meter or Meter()
    with create_cache(inputs, path, workers=workers, options=kept, shard_bytes=shard_bytes) as writer:
        sources = sources_of(writer, inputs)
        if sources is not None:
            missing = set(writer.missing())
            sources.require_unchanged([s for s in range(writer.layout.shards) if s not in missing], renew=True)
        if writer.manifest.complete and not writer.missing():
            cache = open_cache(path)
        else:
            pipeline.run(
                inputs,
                writer,
                sources,
                batch_size=batch_size,
                workers=workers,
                skip_errors=on_error == "skip",
                meter=meter,
            )
            cache = writer.finish()
    whole = meter.images == cache.layout.samples  # not a part that was left
    remember(cache.path, cache.manifest, kept, meter.seconds if whole else None)
    return cache


def _note_older(path: StorePath, manifest: Manifest) -> None:
    """Say where there is a cache of the same pictures as they are stored, before its like is made of them upright."""
    fields = {name: value for name, value in manifest.fields.items() if name != "orientation"}
    if not manifest.upright or path.on_disk is None:
        return
    older = path.on_disk.with_name(cache_name(replace(manifest, fields=fields)))
    if older.exists() and not path.on_disk.exists():
        log.warning(
            "%r holds these pictures as they are stored; this cache takes them upright. To go on with that one, pass "
            "--ignore-orientation.",
            str(older),
        )

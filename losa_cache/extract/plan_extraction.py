"""``plan_extraction``: the cost of a cache, and when it pays, before anything is written."""

import shutil
from contextlib import suppress
from dataclasses import replace
from statistics import mean
from typing import Any

import torch

from losa_cache.backbone import Backbone
from losa_cache.cache.layout import Layout
from losa_cache.cache.location import locate
from losa_cache.cache.metadata_files import MetadataFiles
from losa_cache.cache.precision import PRECISIONS, Encoding, get_precision
from losa_cache.cache.storage import receipts_of
from losa_cache.cache.writer import require_root
from losa_cache.calibrate import calibrate, compression_ratio, images_at_once
from losa_cache.data.samples import Samples
from losa_cache.errors import UserError
from losa_cache.extract.config import PlanConfig
from losa_cache.extract.create_cache import plan_store
from losa_cache.extract.forecast import Candidate, Speeds, forecast, on_gpus, recommend, short
from losa_cache.extract.measure import decode_speed, disk_speed, forward_speed, unpack_speed
from losa_cache.extract.pipeline import pass_length
from losa_cache.extract.plan import cache_name, default_batch
from losa_cache.folders import home
from losa_cache.inputs import Inputs, open_inputs, precision_for
from losa_cache.machine.device import choose_device, default_workers
from losa_cache.machine.gpus import count_gpus
from losa_cache.machine.memory import available_memory
from losa_cache.machine.sizes import parse_bytes
from losa_cache.options import given, lists_options, with_options

PREFERRED = ("bfloat16", "int8", "int4", "predict:2", "predict:1")
"""What may be recommended in place of the precision asked for."""


@lists_options(PlanConfig)
def plan_extraction(
    backbone: str | Backbone | None = None,
    dataset: str | Samples | None = None,
    *,
    config: PlanConfig | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure disk, device and a few images; predict ``losa_cache.extract`` with the same arguments.

    Args:
        backbone, dataset: names or loaded objects, in place of those of ``config``.
        config: the options; those of an extraction will do.
        options: fields of :class:`PlanConfig`, over those of ``config``.

    Nothing is kept: a test file of at most 256 MiB is written where the cache would lie, and removed.

    Returns:
        what would be written (``rows``, ``tokens``, ``width``, ``layers``, ``points``, ``precision``, its mean relative
        ``error``, ``layers_read`` by a run, ``bytes``, ``constants`` beside them, ``shards``, ``files``, ``out``), what
        was measured (``free``, ``disk`` in bytes a second, ``images_per_second``), what follows (``hours_to_extract``,
        ``epoch_seconds`` of features, ``break_even_epochs``), ``device_memory`` (``free`` and ``weights``, in bytes;
        whether these are ``streamed`` through the device, in how many ``groups`` of blocks, of which bytes ``moved``
        for how many ``images`` at once), ``alternatives`` by precision, and ``recommendation``, one sentence. With
        ``gpus``, what so many GPUs would take (``losa_cache.extract.forecast.on_gpus``).

    Raises:
        UserError: for any input that cannot work, in one sentence.
    """
    config = with_options(PlanConfig, config, given(backbone=backbone, dataset=dataset) | options)
    out, precision, tokens = config.out, config.precision, config.tokens
    workers = config.workers or default_workers()
    where = choose_device(config.device)
    gpus = None if config.gpus is None else count_gpus(config.gpus, torch.cuda.device_count())
    if gpus is not None and where.type != "cuda":
        raise UserError(
            f"--gpus needs a GPU to measure, and the device is {str(where)!r}: run plan on a machine with one."
        )
    device_free = available_memory(where)
    budget = None if config.max_device_memory is None else parse_bytes(config.max_device_memory)
    place = locate(home() / "caches" if out is None else out)
    on_disk = place.on_disk
    if on_disk is None:
        raise UserError(f"plan measures a disk, not a server: leave --out {str(out)!r} out.")
    if out is not None and on_disk.exists() and not MetadataFiles(place, receipts_of(place)).copied:
        require_root(place)
    inputs = open_inputs(config=config, device=where, max_device_memory=budget)
    path = on_disk / cache_name(inputs.manifest) if out is None else on_disk
    batch_size = config.batch_size or inputs.backbone.fitting_batch(default_batch(inputs), inputs.compute)
    sample = calibrate(inputs, workers=workers, images=get_precision(precision).images)

    def fit(name: str) -> tuple[Encoding, Layout, float]:
        encoding = sample.fit(precision_for(name, tokens))
        layout = plan_store(inputs, encoding, batch_size=batch_size)
        ratio = compression_ratio(encoding, sample.whole, layout)
        return encoding, replace(layout, compressed=ratio is not None), ratio or 1.0

    fitted = {}
    for name in dict.fromkeys((precision, *PRECISIONS, *PREFERRED)):
        with suppress(UserError):  # of a precision that cannot store this; the one asked for can
            fitted[name] = fit(name)
    encoding, layout, ratio = fitted[precision]
    parent = path.absolute()
    while not parent.is_dir():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    disk = disk_speed(parent, piece=round(layout.sample_bytes * ratio), free=free)
    device_memory = _device_memory(inputs, layout, batch_size, free=device_free)
    batch = min(batch_size, images_at_once(inputs))
    speeds = Speeds(
        write=disk.write,
        read=disk.read,
        reread=disk.reread,
        decode=decode_speed(inputs, workers=workers),
        forward=forward_speed(inputs, encoding, batch),
        shared=where.type == "cpu",
        memory=available_memory(torch.device("cpu")),
        free=free,
    )
    forecasts = {}
    for name, (coded, laid, share) in fitted.items():
        row = laid.sample_chunks * laid.chunk_bytes * share
        candidate = Candidate(name, round(laid.total_bytes * share), row, unpack_speed(coded, sample.whole, laid))
        forecasts[name] = forecast(candidate, speeds, samples=len(inputs.samples), views=inputs.manifest.views)
    errors = {name: encoding_error(coded) for name, (coded, _, _) in fitted.items()}
    chosen = forecasts[precision]
    several = {}
    if gpus is not None:
        decode = speeds.decode * (1 if inputs.decodes_on is None else gpus)  # nvJPEG decodes on each
        known = replace(speeds, decode=decode)
        several = {"gpus": on_gpus(chosen.candidate, known, gpus=gpus, rows=layout.samples)}
    tensors = len(inputs.backbone.tail.state_dict()) + len(encoding.constants())
    return {
        "backbone": inputs.manifest.fields["backbone"]["name"],
        "dataset": inputs.manifest.fields["dataset"]["name"],
        "device": str(where),
        "out": str(path),
        "samples": len(inputs.samples),
        "rows": layout.samples,
        "tokens": inputs.manifest.shape[1],
        "width": inputs.manifest.width,
        "layers": inputs.manifest.layers,
        "points": inputs.manifest.points,
        "precision": precision,
        "error": errors[precision],
        "layers_read": encoding.precision.layers_read,
        "bytes": chosen.candidate.total,
        "constants": sum(tensor.nbytes for tensor in encoding.constants().values()),
        "shards": layout.shards,
        "files": (3 + inputs.samples.stored) * layout.shards + 2 * (9 + 2 * tensors) + 2,
        "free": free,
        "disk": {"write": round(disk.write), "read": round(disk.read), "reread": round(disk.reread)},
        "images_per_second": {"decode": short(speeds.decode), "forward": short(speeds.forward)},
        "hours_to_extract": chosen.hours,
        "epoch_seconds": {"cached": short(chosen.cached), "online": short(chosen.online)},
        "break_even_epochs": chosen.break_even,
        **several,
        "device_memory": device_memory,
        "alternatives": [
            other.figures() | {"error": errors[name]} for name, other in forecasts.items() if name != precision
        ],
        "recommendation": recommend(chosen, [forecasts[name] for name in PREFERRED if name in forecasts]),
    }


def encoding_error(encoding: Encoding) -> float:
    """Give the mean relative error of an encoding's layers, as expected in a cache."""
    stated = encoding.describe()["error"]
    return short(mean(stated) if isinstance(stated, list) else stated)


def _device_memory(inputs: Inputs, layout: Layout, batch_size: int, *, free: int) -> dict[str, Any]:
    """Describe how the backbone's weights get to the device."""
    backbone = inputs.backbone
    groups = backbone.groups(batch_size, inputs.compute)
    figures = {"free": free, "weights": backbone.weight_bytes, "streamed": backbone.streamed is not None}
    if backbone.streamed is None:
        return figures
    moved = sum(backbone.streamed.sizes(inputs.compute).blocks) if len(groups) > 1 else 0
    images = batch_size * pass_length(inputs, layout, batch_size)
    return figures | {"groups": len(groups), "moved": moved, "images": images}

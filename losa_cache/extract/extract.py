"""``extract``: run a backbone over a data set and write a cache."""

import logging
import os
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from losa_cache.backbone import Backbone
from losa_cache.cache.layout import SHARD_BYTES
from losa_cache.cache.location import locate
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.registry import remember
from losa_cache.cache.storage import StorePath
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.data.samples import Samples
from losa_cache.errors import UserError
from losa_cache.extract import pipeline
from losa_cache.extract.config import ExtractConfig
from losa_cache.extract.create_cache import create_cache, sources_of
from losa_cache.extract.meter import Meter
from losa_cache.extract.part import AUTO, Part, array_task
from losa_cache.extract.plan import cache_name, default_batch
from losa_cache.extract.share import Share, run_part
from losa_cache.extract.units import Units
from losa_cache.folders import home
from losa_cache.inputs import Inputs, open_inputs
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device, default_workers
from losa_cache.machine.sizes import parse_bytes
from losa_cache.options import given, lists_options, with_options
from losa_cache.targets.add import add_targets_of

log = logging.getLogger(__name__)


@lists_options(ExtractConfig)
def extract(
    backbone: str | Backbone | None = None,
    dataset: str | Samples | None = None,
    *,
    config: ExtractConfig | None = None,
    shard_bytes: int = SHARD_BYTES,
    meter: Meter | None = None,
    **options: Any,
) -> ActivationCache:
    """Run a frozen backbone once over a data set and write its block outputs to a cache.

    A cache of the same identity at ``out`` is resumed, or returned at once if it is complete. Target sets that come
    with the data are added to a complete cache. With ``part`` several processes extract one cache. If it is ``3/16``,
    this returns when its own units are done, and the cache may be incomplete then. The call sets the process's malloc
    to keep freed memory (``losa_cache.machine.allocator``).

    Args:
        backbone: a name (``load_backbone``) or a loaded backbone, in place of that of ``config``.
        dataset: a name (``load_samples``) or loaded samples, in place of those of ``config``.
        config: the options.
        shard_bytes: target size of a shard, the unit of commit and of resume.
        meter: counts the progress.
        options: fields of :class:`ExtractConfig` that override those of ``config``.

    Raises:
        UserError: for any input that cannot work, in one sentence.
    """
    config = with_options(ExtractConfig, config, given(backbone=backbone, dataset=dataset) | options)
    place = locate(home() / "caches" if config.out is None else config.out)  # refused before anything is opened
    keep_freed_memory()
    memory = config.max_device_memory
    inputs = open_inputs(
        config=config,
        device=choose_device(config.device),
        max_device_memory=None if memory is None else parse_bytes(memory),
    )
    inputs, path = _as_begun(inputs, place, named=config.out is not None)
    _note_older(path, inputs.manifest)
    batch_size = config.batch_size or inputs.backbone.fitting_batch(default_batch(inputs), inputs.compute)
    inputs.backbone.groups(batch_size, inputs.compute)  # a budget that is too small is refused
    workers = config.workers or default_workers()
    kept = replace(config, batch_size=batch_size).to_json() if config.named else None
    meter = meter or Meter()
    part = _part(config)
    with create_cache(
        inputs,
        path,
        workers=workers,
        batch_size=batch_size,
        options=kept,
        shard_bytes=shard_bytes,
        shared=part is not None,
    ) as (writer, agreed):
        if config.batch_size not in (None, agreed):
            raise UserError(
                f"batch-size is {config.batch_size}, and the processes that extract {str(path)!r} together have agreed "
                f"on {agreed}: leave --batch-size out."
            )
        run = partial(
            pipeline.run,
            inputs,
            writer,
            sources := sources_of(writer, inputs),
            batch_size=agreed,
            workers=workers,
            skip_errors=config.on_error == "skip",
            meter=meter,
        )
        missing = set(writer.missing())
        if sources is not None and writer.alone:
            sources.require_unchanged([s for s in range(writer.layout.shards) if s not in missing], renew=True)
        if missing and part is not None:
            run_part(run, Share(writer, part, Units(writer.layout, agreed), missing, meter))
        elif missing or not writer.manifest.complete:
            wanted = writer.wanted()
            meter.start(len(wanted))
            run([wanted], images=len(wanted))
        with writer.turn():
            if part is not None and (left := writer.missing()):
                log.info("%s", Units(writer.layout, agreed).left(left))
                return open_cache(path, incomplete=True)
            cache = writer.finish() if missing or not writer.manifest.complete else open_cache(path)
            cache = add_targets_of(inputs.samples, cache, writer.lock)
    whole = meter.images == cache.layout.samples  # not a part that was left
    remember(cache.path, cache.manifest, kept, meter.seconds if whole else None)
    return cache


def _part(config: ExtractConfig) -> Part | None:
    """Say which part of the cache this process extracts; ``None``: all of it, alone."""
    if config.part is not None:
        return Part.parse(config.part)
    if (task := array_task(os.environ)) is None:
        return None
    log.info("this is %s: it shares the cache with the other tasks that extract it, as --part auto does.", task)
    return Part.parse(AUTO)


def _as_begun(inputs: Inputs, place: StorePath, *, named: bool) -> tuple[Inputs, StorePath]:
    """Give the path of the cache, and the inputs as the version numbered them that began it.

    Args:
        inputs: as this version numbers them.
        place: of the cache, or folder of all caches.
        named: whether it is that of the cache.
    """
    path = place if named else locate(place / cache_name(inputs.manifest))
    if (earlier := inputs.samples.earlier) is None:
        return inputs, path
    former = inputs.numbered_as(earlier.fingerprint)
    there = place if named else locate(place / cache_name(former.manifest))
    with suppress(UserError):  # what is there, or is not, is looked at when it is opened to write
        if open_cache(there, incomplete=True).manifest.identity == former.manifest.identity:
            return former, there
    return inputs, path


def _note_older(path: StorePath, manifest: Manifest) -> None:
    """Warn if there is a cache of the same images without rotation, before a new one of the rotated images is made."""
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

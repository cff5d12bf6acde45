"""``extract``: run a backbone over a data set and write a cache."""

import logging
import os
from functools import partial
from typing import Any

from losa_cache.backbone import Backbone
from losa_cache.cache.layout import SHARD_BYTES
from losa_cache.cache.registry import remember
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.data.samples import Samples
from losa_cache.errors import UserError
from losa_cache.extract.config import ExtractConfig
from losa_cache.extract.meter import Meter
from losa_cache.extract.on_cluster import extract_on_cluster
from losa_cache.extract.part import AUTO, Part, array_task
from losa_cache.extract.processes import extract_in_processes
from losa_cache.extract.session import Extraction
from losa_cache.extract.share import Share, run_part
from losa_cache.folders import home
from losa_cache.options import given, lists_options, with_options

log = logging.getLogger(__name__)


@lists_options(ExtractConfig)
def extract(
    backbone: str | Backbone | None = None,
    dataset: str | Samples | None = None,
    *,
    config: ExtractConfig | None = None,
    shard_bytes: int = SHARD_BYTES,
    scheduler: str | None = None,
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
        scheduler: address of a dask.distributed scheduler, ``tcp://HOST:PORT``: its workers extract. They load backbone
            and data set by the same names and paths, and see the cache where this process sees it.
        meter: counts the progress.
        options: fields of :class:`ExtractConfig` that override those of ``config``.

    Raises:
        UserError: for any input that cannot work, in one sentence.
    """
    config = with_options(ExtractConfig, config, given(backbone=backbone, dataset=dataset) | options)
    meter = meter or Meter()
    if config.gpus is not None or config.processes is not None:
        if scheduler is not None:
            raise UserError("--scheduler has a cluster's workers do the work: leave --gpus and --processes out.")
        return extract_in_processes(config, shard_bytes=shard_bytes, meter=meter)
    if scheduler is not None:
        cache = extract_on_cluster(config, scheduler, shard_bytes=shard_bytes, meter=meter)
        remember(cache.path, cache.manifest, cache.manifest.options)
        return cache
    extraction, part = Extraction.open(config, home), _part(config)
    with extraction.writing(shared=part is not None, shard_bytes=shard_bytes) as writing:
        writer, sources = writing.writer, writing.sources
        missing = set(writer.missing())
        if sources is not None and writer.alone:
            sources.require_unchanged([s for s in range(writer.layout.shards) if s not in missing], renew=True)
        run = partial(writing.run, meter=meter)
        if missing and part is not None:
            run_part(run, Share(writer, part, writing.units, missing, meter))
        elif missing or not writer.manifest.complete:
            wanted = writer.wanted()
            meter.start(len(wanted))
            run([wanted], images=len(wanted))
        finished = writing.finish()
    if finished is None:
        return open_cache(extraction.path, incomplete=True)
    whole = meter.images == finished.layout.samples  # not a part that was left
    remember(finished.path, finished.manifest, extraction.options, meter.seconds if whole else None)
    return finished


def _part(config: ExtractConfig) -> Part | None:
    """Say which part of the cache this process extracts; ``None``: all of it, alone."""
    if config.part is not None:
        return Part.parse(config.part)
    if (task := array_task(os.environ)) is None:
        return None
    log.info("this is %s: it shares the cache with the other tasks that extract it, as --part auto does.", task)
    return Part.parse(AUTO)

"""An extraction that is open: its inputs, and the cache that is written, by this process alone or with others."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from losa_cache.cache.layout import SHARD_BYTES
from losa_cache.cache.location import locate
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.storage import StorePath, receipts_of
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.cache.writer import CacheWriter
from losa_cache.errors import UserError
from losa_cache.extract import pipeline
from losa_cache.extract.config import ExtractConfig
from losa_cache.extract.create_cache import create_cache, sources_of
from losa_cache.extract.meter import Meter
from losa_cache.extract.plan import cache_name, default_batch
from losa_cache.extract.units import Units
from losa_cache.inputs import Inputs, open_inputs
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device, default_workers
from losa_cache.machine.sizes import parse_bytes
from losa_cache.sources import Sources
from losa_cache.targets.add import add_targets_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extraction:
    """What is extracted, and where to.

    Attributes:
        config: the options.
        inputs: backbone and samples.
        path: of the cache.
        batch_size: images in a forward pass, unless processes that have begun agreed on another number.
        workers: decoding threads.
    """

    config: ExtractConfig
    inputs: Inputs
    path: StorePath
    batch_size: int
    workers: int

    @classmethod
    def open(cls, config: ExtractConfig, home: Callable[[], Path]) -> "Extraction":
        """Load backbone and samples.

        Args:
            config: the options.
            home: gives the user's folder, below which the cache lies if no option says where.

        Raises:
            UserError: for any option that cannot work.
        """
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
        return cls(config, inputs, path, batch_size, config.workers or default_workers())

    @property
    def options(self) -> dict[str, Any] | None:
        """What the cache stores of the options."""
        return replace(self.config, batch_size=self.batch_size).to_json() if self.config.named else None

    @contextmanager
    def writing(self, *, shared: bool, shard_bytes: int = SHARD_BYTES) -> "Iterator[Writing]":
        """Create the cache or open it to go on (arguments as of :func:`create_cache`).

        Raises:
            UserError: as of :func:`create_cache`, and for another batch size than that of processes that have begun.
        """
        with create_cache(
            self.inputs,
            self.path,
            workers=self.workers,
            batch_size=self.batch_size,
            options=self.options,
            shard_bytes=shard_bytes,
            shared=shared,
        ) as (writer, agreed):
            if not shared:
                remove_mark(writer.path)
            if self.config.batch_size not in (None, agreed):
                raise UserError(
                    f"batch-size is {self.config.batch_size}, and the processes that extract {str(self.path)!r} "
                    f"together have agreed on {agreed}: leave --batch-size out."
                )
            yield Writing(self, writer, sources_of(writer, self.inputs), agreed)


@dataclass(frozen=True)
class Writing:
    """A cache that is being written.

    Attributes:
        extraction: that fills it.
        writer: of the cache.
        sources: lists of source files, if samples lie in files of their own.
        batch_size: rows of a batch.
    """

    extraction: Extraction
    writer: CacheWriter
    sources: Sources | None
    batch_size: int

    @property
    def units(self) -> Units:
        """All units of work."""
        return Units(self.writer.layout, self.batch_size)

    def run(self, work: Iterable[Sequence[int]], *, images: int, meter: Meter) -> None:
        """Write rows (``pipeline.run``)."""
        pipeline.run(
            self.extraction.inputs,
            self.writer,
            self.sources,
            work,
            images=images,
            batch_size=self.batch_size,
            workers=self.extraction.workers,
            skip_errors=self.extraction.config.on_error == "skip",
            meter=meter,
        )

    def finish(self) -> ActivationCache | None:
        """Complete the cache, once, with the target sets that come with the data; ``None`` if shards are missing."""
        self.writer.lock.wait()  # for the last upload
        return self.writer.lock.in_turn(self._finish)

    def _finish(self) -> ActivationCache | None:
        if missing := self.writer.missing():
            log.info("%s", self.units.left(missing))
            return None
        cache = self.writer.finish()
        remove_mark(cache.path)
        return add_targets_of(self.extraction.inputs.samples, cache, self.writer.lock)


def mark_of(path: StorePath) -> StorePath:
    """File in which a command that gives work to a cluster writes its name, beside the cache."""
    return receipts_of(path) / "cluster"


def remove_mark(path: StorePath) -> None:
    """Remove the mark of a command that has ended, or was killed."""
    if path.lists:  # on others no cluster writes
        mark_of(path).unlink(missing_ok=True)


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

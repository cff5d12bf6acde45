"""Add target sets to a finished cache, and remove them: the backbone is not run again."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from losa_cache.cache.location import Location, locate
from losa_cache.cache.metadata_files import ROOT, MetadataFiles
from losa_cache.cache.storage import WriterLock, receipts_of
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.cache.target_arrays import put_targets, remove_array
from losa_cache.errors import UserError, nearest, no_cache
from losa_cache.files import reason, remedy
from losa_cache.targets.check import require_name, require_names, require_values
from losa_cache.targets.read import open_source, read_targets
from losa_cache.targets.source import Progress, Source
from losa_cache.targets.target_set import KINDS, TargetSet

if TYPE_CHECKING:  # they load timm, which tables do without
    from losa_cache.data.samples import Samples
    from losa_cache.targets.frame import Frames

log = logging.getLogger(__name__)

Cache = ActivationCache | str | Location


def add_targets(
    cache: Cache,
    source: str | Path | Source | TargetSet,
    *,
    task: str | None = None,
    name: str | None = None,
    columns: Sequence[str] | None = None,
    ignore: int | None = None,
    subset: bool = False,
    dataset: "Samples | None" = None,
    data_dir: str | Path | None = None,
    progress: Progress = lambda _: None,
) -> TargetSet:
    """Write a target set into a finished cache; one of the same name is replaced.

    The block outputs, the receipts of the shards and the identity stay as they are. A cache that is open does not see
    the new target set: open it again.

    Args:
        cache: a complete cache, or its place.
        source: a table (CSV, JSON lines, Parquet); a folder of masks or depth maps; or a target set, whose values are
            in the order of ``cache.sample_ids``.
        task: that learns the targets; ``None``: a folder holds masks, and the cells of a table say what they are.
        name: of the target set; ``None``: that of the file or folder.
        columns: of a table, to take; ``None``: all.
        ignore: a value of masks that stands for no class, besides 255.
        subset: leave out targets of samples that the cache does not have. Otherwise they are refused.
        dataset: the loaded images, if the cache was extracted from such; only masks and depth maps need them.
        data_dir: where the images lie now; by default where they were at extraction.
        progress: is called with the share of the targets that is read.

    Returns:
        the target set.

    Raises:
        UserError: if the cache is not complete, has no receipts or cannot be written, or for targets that cannot be
            used.
    """
    if isinstance(source, str | Path):
        source = open_source(source, task=task, columns=columns, ignore=ignore)
    writing = _writing(cache)
    return _add(writing, source, name=name, subset=subset, dataset=dataset, data_dir=data_dir, progress=progress)


def _add(
    writing: AbstractContextManager[tuple[WriterLock, ActivationCache]],
    source: Source | TargetSet,
    *,
    name: str | None = None,
    subset: bool = False,
    dataset: "Samples | None" = None,
    data_dir: str | Path | None = None,
    progress: Progress = lambda _: None,
) -> TargetSet:
    with writing as (lock, opened):
        if isinstance(source, Source):
            frames = _frames(opened, dataset, data_dir) if source.framed else None
            wanted = opened.samples.tolist()
            targets = read_targets(
                source, opened.sample_ids, name=name, wanted=wanted, subset=subset, frames=frames, progress=progress
            )
        else:
            targets = source if name is None else replace(source, name=name)
        _require_sound(targets, opened)
        declared = {"kind": targets.kind, "names": list(targets.names), "fingerprint": targets.fingerprint}
        manifest = replace(opened.manifest, targets=opened.manifest.targets | {targets.name: declared})
        lock.metadata.change(manifest, lambda group: put_targets(group, targets))
    return targets


def add_targets_of(samples: "Samples", cache: ActivationCache, lock: WriterLock) -> ActivationCache:
    """Write the target sets that come with the data into a finished cache: those that it lacks, and tables that say
    something else now.

    Masks and depth maps are read only if the cache lacks them.

    Args:
        samples: of the cache, or more of them.
        cache: complete.
        lock: of it, which this process has.

    Returns:
        the cache with its target sets.

    Raises:
        UserError: for targets that cannot be used, or a cache that cannot be written.
    """
    for name, source in samples.targets.items():
        stored = cache.manifest.targets.get(name)
        if source.framed:
            if stored is None:
                _add(_writing(cache, lock), source, name=name, subset=True, dataset=samples)
            continue
        targets = read_targets(source, cache.sample_ids, name=name, wanted=cache.samples.tolist(), subset=True)
        if stored is None or stored["fingerprint"] != targets.fingerprint:
            _add(_writing(cache, lock), targets)
            if stored is not None:
                log.warning("the target set %r of %r is another now, and was replaced.", name, str(cache.path))
    return open_cache(cache.path) if samples.targets else cache


def _frames(cache: ActivationCache, dataset: "Samples | None", data_dir: str | Path | None) -> "Frames":
    """Find the images that dense targets belong to.

    Raises:
        UserError: for a cache of several views or of videos, or images that are not there.
    """
    from losa_cache.data.transforms import InputSpec
    from losa_cache.extract.recompute import reopen_images
    from losa_cache.targets.frame import Frames

    manifest = cache.manifest
    if manifest.views > 1 or manifest.fields["input"]["frames"] > 1:
        kind = "of videos" if manifest.clips > 1 or manifest.fields["input"]["frames"] > 1 else "of augmented views"
        raise UserError(
            f"cache {str(cache.path)!r} is {kind}, and masks and depth maps follow the plain view of an image: extract "
            "a cache of one view."
        )
    samples = reopen_images(cache, dataset=dataset, data_dir=data_dir)
    return Frames(samples, InputSpec.from_fields(manifest.fields["input"]), manifest.upright)


def remove_targets(cache: Cache, name: str) -> None:
    """Remove a target set from a finished cache.

    Args:
        cache: a complete cache, or its place.
        name: of the target set.

    Raises:
        UserError: if there is none of this name, it is the cache's own labels, or the cache cannot be written.
    """
    with _writing(cache) as (lock, opened):
        targets = opened.manifest.targets
        if name not in targets:
            known = list(targets)
            choice = f"choose one of {', '.join(known)}{nearest(name, known)}" if known else "there is none"
            raise UserError(f"cache {str(opened.path)!r} has no target set {name!r} that can be removed: {choice}.")
        left = {other: declared for other, declared in targets.items() if other != name}
        lock.metadata.change(replace(opened.manifest, targets=left), lambda group: remove_array(group, name))


@contextmanager
def _writing(cache: Cache, held: WriterLock | None = None) -> Iterator[tuple[WriterLock, ActivationCache]]:
    """Take a cache's lock, unless this process has it, mend what a killed change left, and open it.

    Raises:
        UserError: if it is no complete cache with its receipts, another process writes it, or it cannot be written.
    """
    path = cache.path if isinstance(cache, ActivationCache) else locate(cache)
    identity = cache.manifest.identity if isinstance(cache, ActivationCache) else None
    if not path.is_folder(ROOT):
        raise no_cache(path)
    metadata = MetadataFiles(path, receipts_of(path))
    if not metadata.has_receipts:
        open_cache(path)  # says what is wrong if it is no cache
        raise UserError(
            f"{str(path)!r} has no receipts, which say what its files are: copy {str(metadata.receipts)!r} with it."
        )
    try:
        with path.lock() if held is None else nullcontext(held) as lock:
            lock.metadata.repair(identity)
            yield lock, open_cache(path)
    except OSError as error:
        raise UserError(
            f"the target sets of {str(path)!r} cannot be written ({reason(error)}): {remedy(error)} and run the same "
            "command again."
        ) from error


def _require_sound(targets: TargetSet, cache: ActivationCache) -> None:
    try:
        if targets.kind not in KINDS:
            raise ValueError(f"its kind is {targets.kind!r}, and there are {', '.join(KINDS)}")
        require_name(targets.name)
        require_names(targets.kind, targets.names)
        require_values(targets, len(cache.sample_ids))
        size = tuple(cache.manifest.fields["input"]["size"][1:])
        if targets.values.ndim == 3 and targets.values.shape[1:] != size:
            raise ValueError(f"values are of {targets.values.shape[1:]} pixels, the input of the backbone of {size}")
    except ValueError as error:
        raise UserError(f"{targets.name!r} cannot be a target set of {str(cache.path)!r}: {error}.") from error

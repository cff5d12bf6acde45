"""Add target sets to a finished cache, and remove them: the backbone is not run again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from losa_cache.cache.location import Location, locate
from losa_cache.cache.metadata_files import ROOT, MetadataFiles
from losa_cache.cache.storage import WriterLock, receipts_of
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.cache.target_arrays import put_targets, remove_array
from losa_cache.errors import UserError, nearest, no_cache
from losa_cache.files import reason, remedy
from losa_cache.targets.check import require_name, require_names, require_values
from losa_cache.targets.target_set import KINDS, TargetSet

Cache = ActivationCache | str | Location
Declared = dict[str, dict[str, Any]]


def add_targets(cache: Cache, source: TargetSet) -> TargetSet:
    """Write a target set into a finished cache; one of the same name is replaced.

    The block outputs, the receipts of the shards and the identity stay as they are.

    Args:
        cache: a complete cache, or its place.
        source: a target set, whose values are in the order of ``cache.sample_ids``.

    Returns:
        the target set, as the cache has it.

    Raises:
        UserError: if the cache is not complete, has no receipts or cannot be written, or for targets that cannot be.
    """
    with _writing(cache) as (lock, opened):
        _require_sound(source, opened)
        declared = {"kind": source.kind, "names": list(source.names), "fingerprint": source.fingerprint}
        manifest = replace(opened.manifest, targets=opened.manifest.targets | {source.name: declared})
        lock.metadata.change(manifest, lambda group: put_targets(group, source))
    return open_cache(opened.path).target_set(source.name)


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
def _writing(cache: Cache) -> Iterator[tuple[WriterLock, ActivationCache]]:
    """Take a cache's lock, mend what a killed change left, and open it.

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
        with path.lock() as lock:
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

"""Whether a cache that was begun holds values of the very caches that it is made of now.

Caches of one identity may hold other values: where other samples of theirs were skipped, the constants of ``int8`` are
fitted to other ones. So a new cache notes what it was made of, and another source does not go on with it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from losa_cache.cache.checked import REPAIR
from losa_cache.cache.local_copy import shard_digests
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import Encoding
from losa_cache.cache.shard import DamagedShardError
from losa_cache.cache.store import ActivationCache
from losa_cache.cache.writer import CacheWriter
from losa_cache.errors import UserError


def with_digests(manifest: Manifest, sources: Sequence[ActivationCache]) -> Manifest:
    """Note in ``made_from`` which values each source holds, where its receipts say it.

    Raises:
        UserError: for a source whose receipts are damaged.
    """
    noted = [
        entry if (digest := values_digest(source)) is None else entry | {"digest": digest}
        for entry, source in zip(manifest.made_from, sources, strict=True)
    ]
    return replace(manifest, made_from=noted)


def values_digest(cache: ActivationCache) -> str | None:
    """Hash the digests of a cache's shards and the constants that give them a meaning; ``None``: it has no receipts.

    Raises:
        UserError: for a receipt that is missing or damaged.
    """
    if cache.digests is None:
        return None
    try:
        digest = hashlib.sha256("\n".join(shard_digests(cache)).encode())
    except DamagedShardError as error:
        raise UserError(f"a shard of {str(cache.path)!r} is damaged ({error}): {REPAIR}.") from error
    for name, constant in sorted(cache.encoding().constants().items()):
        digest.update(f"\n{name}\n".encode() + constant.contiguous().view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def require_same_values(begun: CacheWriter, manifest: Manifest, copied: Encoding | None) -> None:
    """Refuse to go on with a cache that holds values of other sources.

    Args:
        begun: the new cache, of the same identity; one that was extracted itself holds what its identity says.
        manifest: of :func:`with_digests`.
        copied: the encoding of the sources, if stored values are copied.

    Raises:
        UserError: if a digest or a constant differs.
    """
    theirs = [entry.get("digest") for entry in begun.manifest.made_from]
    ours = [entry.get("digest") for entry in manifest.made_from]
    # a cache of an older version, or a source without receipts, says nothing
    known = [(one, other) for one, other in zip(theirs, ours, strict=False) if None not in (one, other)]
    same = not theirs or (len(theirs) == len(ours) and all(one == other for one, other in known))
    if not same or (copied is not None and not same_constants(begun.encoding, copied)):
        raise UserError(f"{str(begun.path)!r} holds values of another cache: choose another --out.")


def same_constants(one: Encoding, other: Encoding) -> bool:
    """Whether stored values mean the same in two encodings."""
    return same_tensors(one.constants(), other.constants())


def same_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether two sets of named tensors are equal."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

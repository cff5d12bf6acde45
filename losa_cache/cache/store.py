"""A cache, opened: a Zarr v3 group."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import BloscCodec

from losa_cache.cache.arrays import CONSTANTS, check_activations, check_rows, read_array, told
from losa_cache.cache.byte_source import ByteSource
from losa_cache.cache.checked import REPAIR, CheckedStore, require_own
from losa_cache.cache.layout import Layout
from losa_cache.cache.location import Location, locate, sizes
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.metadata_files import ROOT, MetadataFiles
from losa_cache.cache.precision import Encoding, Precision, get_precision
from losa_cache.cache.receipt import Receipt
from losa_cache.cache.registry import known_stores
from losa_cache.cache.shard import ShardReader
from losa_cache.cache.storage import StorePath, receipts_of, shard_path
from losa_cache.cache.target_arrays import place_of
from losa_cache.errors import UserError, nearest, no_cache, no_training_cache
from losa_cache.ids import Ids
from losa_cache.outside import UnreadableError, parse_json, require
from losa_cache.points import ALL
from losa_cache.targets.check import checked_shape, require_values
from losa_cache.targets.target_set import CLASS, DTYPES, LABELS, UNKNOWN, TargetSet

HELD_OUT_SPLITS = ("test", "val", "valid", "validation", "val200")

log = logging.getLogger(__name__)
_told: set[StorePath] = set()  # stores that were said to have no receipts


@dataclass(frozen=True)
class ActivationCache:
    """An opened cache: everything but the activations, which :class:`BlockReader` reads.

    Attributes:
        path: the ``.zarr`` folder: a ``pathlib.Path``, or a place in another store.
        manifest: its attributes.
        layout: chunks and shards of the activations.
        labels: int64 ``(rows,)``; -1 where the sample was skipped.
        ids: sample ids ``(rows,)``.
        digests: sha256 of every metadata file. Every file that is read is compared with it, and every shard with its
            receipt. ``None`` for a cache that is not complete, or that came without its receipts.

    Sample s has the rows ``s * V ... s * V + V - 1``, its V views.
    """

    path: StorePath
    manifest: Manifest
    layout: Layout
    labels: NDArray[np.int64]
    ids: Ids
    digests: Mapping[str, str] | None = None

    @property
    def precision(self) -> Precision:
        """How the activations are stored."""
        return get_precision(self.manifest.precision)

    @property
    def samples(self) -> NDArray[np.int64]:
        """Numbers of the samples that have all their views, which are all samples except the skipped ones."""
        return np.flatnonzero((self.labels.reshape(-1, self.manifest.views) >= 0).all(axis=1))

    @property
    def target_kinds(self) -> dict[str, str]:
        """The kind of each target set, by name; first its own labels."""
        return {LABELS: CLASS} | {name: declared["kind"] for name, declared in self.manifest.targets.items()}

    def target_set(self, name: str) -> TargetSet:
        """Read a target set: its values are in the order of the samples.

        Raises:
            UserError: if there is none of this name, or it breaks the protocol.
        """
        if name == LABELS:
            views = self.labels.reshape(-1, self.manifest.views)
            values = np.where((views >= 0).all(axis=1), views[:, 0], UNKNOWN)
            return TargetSet(LABELS, CLASS, self.manifest.classes, values)
        if name not in self.target_kinds:
            known = list(self.target_kinds)
            raise UserError(
                f"cache {str(self.path)!r} has no target set {name!r}: choose one of {', '.join(known)}"
                f"{nearest(name, known)}."
            )
        with _decoding(f"the target set {name!r} of {str(self.path)!r} cannot be read"):
            kind, names, fingerprint = (self.manifest.targets[name][key] for key in ("kind", "names", "fingerprint"))
            place, samples = place_of(name), len(self.labels) // self.manifest.views
            shape = checked_shape(kind, samples, len(names), self.manifest.fields["input"]["size"][1:])
            array = _array(self.path, self.digests, place)
            targets = TargetSet(
                name, kind, names, read_array(array, self.path / place, place, dtype=DTYPES[kind], shape=shape)
            )
            require_values(targets, samples)
            require(targets.fingerprint == fingerprint, f"{place} is not what the attributes say")
        return targets

    @property
    def sample_ids(self) -> Ids:
        """The id of each sample."""
        return self.ids[:: self.manifest.views]

    @property
    def remote(self) -> bool:
        """Whether it lies on a server."""
        return self.path.remote

    @property
    def stored_bytes(self) -> int:
        """Bytes of the whole store."""
        if self.path.lists:
            return sum(size for _, size in self.path.scan())
        return sum(sizes([self.path / name for name in self.metadata.names()])) + sum(self.shard_sizes().values())

    def shard_sizes(self) -> dict[int, int]:
        """Bytes of each shard that is there, by its number."""
        found = enumerate(sizes([self.shard_path(shard) for shard in range(self.layout.shards)]))
        return {shard: size for shard, size in found if size}

    @property
    def receipts(self) -> StorePath:
        """Folder beside the store."""
        return receipts_of(self.path)

    @property
    def metadata(self) -> MetadataFiles:
        """Every file but the shards, and its copy."""
        return MetadataFiles(self.path, self.receipts)

    def encoding(self) -> Encoding:
        """Rebuild the encoding that decodes the activations.

        Raises:
            UserError: if its constants break the protocol, or belong to another cache.
        """
        tokens = self.manifest.tokens
        with _decoding(f"the scales in {str(self.path)!r} cannot be read"):
            scales, (points, _, width) = self._tensors("scales"), self.manifest.shape
            if "channel" in scales and scales["channel"].shape != (points, width):
                raise ValueError(f"they are of {tuple(scales['channel'].shape)} layers and channels")
            encoding = self.precision.load(scales, tokens=tokens["total"], prefix=tokens["prefix"])
            if encoding.stored_shape(*self.manifest.shape) != self.layout.shape[1:]:
                raise ValueError(f"they are of samples of another shape than {self.layout.shape[1:]}")
        return encoding

    def tail_tensors(self) -> dict[str, Tensor]:
        """Tensors of the frozen tail, by name (float32).

        Raises:
            UserError: if they cannot be read, or belong to another cache.
        """
        with _decoding(f"the frozen tail in {str(self.path)!r} cannot be read"):
            return self._tensors("tail")

    def _tensors(self, name: str) -> dict[str, Tensor]:
        found = {}
        _group(self.path, self.digests, name)
        for key in self._arrays(name):
            kinds = "float32" if name == "tail" else CONSTANTS.get(key, tuple(set(CONSTANTS.values())))
            array = _array(self.path, self.digests, f"{name}/{key}")
            found[key] = torch.from_numpy(read_array(array, self.path / name / key, f"{name}/{key}", dtype=kinds))
            if not bool(found[key].isfinite().all()):
                raise ValueError(f"{name}/{key} holds values that are not finite")
        return found

    def _arrays(self, group: str) -> list[str]:
        """Give the names of the arrays of a group; this also works on a server that cannot list files."""
        parts = [name.split("/") for name in (self.metadata.names() if self.digests is None else self.digests)]
        return [part[1] for part in parts if len(part) == 3 and part[0] == group and part[2] == ROOT]

    def shard_path(self, shard: int) -> StorePath:
        """File of a shard."""
        return shard_path(self.path, self.manifest.fields["tap"], shard)

    def open_shard(self, shard: int, *, direct: bool = False) -> ByteSource:
        """Open a shard's bytes.

        Args:
            shard: its number.
            direct: read past the page cache, if the file system can.

        Raises:
            FileNotFoundError: if it is not there.
        """
        return self.shard_path(shard).open_bytes(direct=direct)

    def shard_reader(self, shard: int, *, direct: bool = False) -> ShardReader:
        """Open a shard for reading; it is checked against its receipt.

        Args:
            shard: its number.
            direct: as of :meth:`open_shard`.

        Raises:
            DamagedShardError: if it or its receipt is damaged, or belongs to another place.
            FileNotFoundError: if it is not there.
        """

        def opened() -> ShardReader:
            return ShardReader(self.open_shard(shard, direct=direct), self.layout)

        if self.digests is not None:
            return Receipt(self.receipts, shard, self.manifest.identity).bind(self.shard_path(shard), opened)
        if self.path not in _told:
            _told.add(self.path)
            log.warning(
                "%s lies without its .receipts folder: checksums say whether its bytes are whole, but nothing says "
                "whether they are all of this cache and in their places.",
                self.path,
            )
        return opened()


def open_cache(path: str | Location, *, incomplete: bool = False) -> ActivationCache:
    """Open a cache.

    Args:
        path: the ``.zarr`` folder: a path, or a URL (``s3://bucket/x.zarr``, ``https://host/x.zarr``, ...).
        incomplete: open it even if its extraction has not finished.

    Raises:
        UserError: if there is none, it is not a cache, it is not complete, a metadata file is not the one that its
            receipts say, or its server fails.
    """
    place = locate(path)
    return open_with(place, MetadataFiles(place, receipts_of(place)).digests, incomplete=incomplete, named=path)


def open_with(
    path: StorePath,
    digests: Callable[[], Mapping[str, str] | None],
    *,
    incomplete: bool = False,
    named: str | Location | None = None,
) -> ActivationCache:
    """Open a cache as :func:`open_cache` does.

    Args:
        path: the ``.zarr`` folder.
        digests: gives the sha256 of every metadata file, by name, ``None`` where nothing says. Asked for once the
            root's ``zarr.json`` says that the cache is complete: until then an extraction may be changing both.
        incomplete: as of :func:`open_cache`.
        named: as the user names it; by default its whole path.

    Raises:
        UserError: as :func:`open_cache`.
    """
    try:
        root = (path / ROOT).read()
    except FileNotFoundError as error:
        raise no_cache(path if named is None else named) from error
    except UnreadableError as error:
        raise UserError(f"{str(path / ROOT)!r} cannot be read: {error}.") from error
    try:
        with _decoding(f"{str(path)!r} cannot be read as a cache"):
            attributes = parse_json(root, dict[str, Any]).get("attributes")
            manifest = Manifest.from_attributes(attributes if isinstance(attributes, dict) else {}, str(path))
    except UserError as error:
        if (listed := digests()) is None:
            raise
        try:
            require_own(ROOT, root, listed, path)  # where this is not the root that was written, it can be put back
        except UserError as altered:
            raise UserError(f"{str(error).removesuffix('.')}: {altered}") from error
        raise
    if not manifest.complete and not incomplete:
        raise UserError(f"cache {str(path)!r} is incomplete: run the same losa-cache extract again to finish it.")
    held_to = digests() if manifest.complete else None
    if held_to is not None:
        require_own(ROOT, root, held_to, path)
    with _decoding(f"{str(path)!r} cannot be read as a cache"):
        activations, labels, ids = (
            _array(path, held_to, name) for name in (f"activations/{manifest.fields['tap']}", "labels", "sample_ids")
        )
        numbers = read_array(labels, path / "labels", "labels", dtype="int64", shape=(None,))
        check_rows(manifest, numbers)
        check_activations(activations, manifest, len(numbers))
        packed = read_array(ids, path / "sample_ids", "sample_ids", dtype="uint8", shape=(len(numbers), None))
        layout, names = _layout(activations), Ids.unpacked(packed)
    return ActivationCache(path, manifest, layout, numbers.astype(np.int64, copy=False), names, held_to)


def _group(path: StorePath, digests: Mapping[str, str] | None, name: str) -> None:
    zarr.open_group(CheckedStore(path, digests), path=name, mode="r", zarr_format=3)


def _array(path: StorePath, digests: Mapping[str, str] | None, name: str) -> zarr.Array[Any]:
    return zarr.open_array(CheckedStore(path, digests), path=name, mode="r", zarr_format=3)


def _layout(array: zarr.Array[Any]) -> Layout:
    rows, layers, tokens, columns = array.shape
    assert array.shards is not None
    return Layout(
        rows,
        layers,
        tokens,
        columns,
        itemsize=array.dtype.itemsize,
        chunk_layers=array.chunks[1],
        shard_samples=array.shards[0],
        compressed=any(isinstance(codec, BloscCodec) for codec in array.compressors),
    )


@contextmanager
def _decoding(failed: str) -> Iterator[None]:
    """Say in a sentence what is wrong with what Zarr reads: broken metadata leads it to errors of any kind."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{failed} ({told(error)}): if it was one, {REPAIR}.") from error


def latest_training_cache(*, all_tokens: bool = True) -> ActivationCache:
    """Open the most recently completed cache that is not of a held-out split.

    Args:
        all_tokens: pass over caches of pooled rows.

    Raises:
        UserError: if this user has none.
    """
    passed_over = None
    for path in known_stores():
        try:
            cache = open_cache(path, incomplete=True)
        except UserError:  # altered or of another protocol since: naming it in --cache says why
            continue
        if not cache.manifest.complete or cache.manifest.fields["dataset"]["split"] in HELD_OUT_SPLITS:
            continue
        if not all_tokens or cache.manifest.holds == ALL:
            return cache
        passed_over = passed_over or cache
    if passed_over is not None:
        raise UserError(
            f"there is no training cache of all tokens yet, only of pooled rows ({str(passed_over.path)!r}): make one "
            "with losa-cache extract --tokens all, or train a --side that reads pooled rows: linear or fusion."
        )
    raise no_training_cache()

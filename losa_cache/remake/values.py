"""Rows of a finished cache as a new one stores them: copied as they are, or decoded and encoded anew."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.cache.layout import Layout
from losa_cache.cache.precision import EncodedBatch, Encoding, get_precision
from losa_cache.cache.reader import BlockReader
from losa_cache.cache.shard import PackedSample, pack
from losa_cache.cache.store import ActivationCache
from losa_cache.sidenet.pooled import pooling_of
from losa_cache.train.training_data import frozen_tail


class Row(NamedTuple):
    """A row of the new cache.

    Attributes:
        packed: its chunks.
        overflowed, non_finite: as of ``CacheWriter.append``.
    """

    packed: PackedSample
    overflowed: int
    non_finite: int


class Points:
    """Decode points of a cache.

    Args:
        cache: complete.
        kept: positions of the points.
        pooled: whether their tokens are pooled, and the features of the tail are added as one more point.
        device: that decodes.
        threads: that read from a disk.
    """

    def __init__(
        self, cache: ActivationCache, kept: Sequence[int], *, pooled: bool, device: torch.device, threads: int
    ) -> None:
        self.cache, self.device = cache, device
        self.reader = BlockReader(
            cache, [cache.manifest.points[at] for at in kept], threads=None if cache.remote else threads
        )
        self._encoding = cache.encoding().select(kept).to(device)
        self._pool = pooling_of(cache.manifest.tail) if pooled else None
        self._tail = frozen_tail(cache).to(device).eval() if pooled else None

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's values as float32."""
        return len(self.reader.positions) * prod(self.cache.manifest.shape[1:]) * torch.float32.itemsize

    def close(self) -> None:
        """Close the files."""
        self.reader.close()

    def stored(self, rows: NDArray[np.int64]) -> Tensor:
        """Read stored elements ``(stored points, batch, tokens, columns)``."""
        layout, dtype = self.cache.layout, self.cache.precision.stored_dtype
        stored = torch.empty(len(self.reader.positions), len(rows), layout.tokens, layout.columns, dtype=dtype)
        self.reader.read(rows, list(stored))
        return stored

    @torch.inference_mode()
    def decoded(self, stored: Tensor) -> list[Tensor]:
        """Decode elements of :meth:`stored`: float32 ``(batch, tokens or rows, width)`` a point, on the device."""
        blocks = [block.float() for block in self._encoding.decode([own.to(self.device) for own in stored])]
        if self._pool is None or self._tail is None:
            return blocks
        rows = [self._pool(block) for block in blocks]
        return [*rows, self._tail(blocks[-1])[:, None].repeat(1, self._pool.rows, 1)]


class Rows(ABC):
    """Give rows of a cache as a new one stores them. Threads may share it.

    Attributes:
        points: of the old cache.
        layout: of the new one.
    """

    def __init__(self, points: Points, layout: Layout) -> None:
        self.points, self.layout = points, layout

    @abstractmethod
    def __call__(self, rows: NDArray[np.int64]) -> list[Row]:
        """Give these rows of the old cache, none of which is skipped.

        Raises:
            UserError: for a row that is damaged.
        """

    def lost(self, stored: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Count for each row the stored values that overflowed, and those that are not finite."""
        manifest = self.points.cache.manifest
        overflowed, non_finite = np.zeros((2, stored.shape[1]), dtype=np.int64)
        if manifest.overflowed or manifest.non_finite:  # hardly ever
            largest = torch.finfo(get_precision(manifest.precision).dtype).max
            for block in self.points.decoded(stored):
                overflowed += (block.abs() == largest).flatten(1).sum(1).cpu().numpy() * bool(manifest.overflowed)
                non_finite += (~block.isfinite()).flatten(1).sum(1).cpu().numpy()
        return overflowed, non_finite


class Copied(Rows):
    """Stored elements as they are: whole chunks, or, where these are cut in another way, elements in new ones.

    Args:
        points, layout: as of :class:`Rows`.
        kept: positions of the points.
    """

    def __init__(self, points: Points, layout: Layout, kept: Sequence[int]) -> None:
        super().__init__(points, layout)
        old = points.cache.layout
        per_chunk = old.chunk_layers
        chosen = points.cache.precision.stored_layers(kept)
        chunks = sorted({layer // per_chunk for layer in chosen})
        whole = [layer for chunk in chunks for layer in range(chunk * per_chunk, (chunk + 1) * per_chunk)]
        same = (old.chunk_layers, old.compressed) == (layout.chunk_layers, layout.compressed)
        if not old.compressed and (points.cache.remote or old.short):
            same = False  # long reads, of which the very same chunks are made, in place of one a row
        manifest = points.cache.manifest
        self._chunks = chunks if same and whole == sorted(set(chosen)) else None
        self._counted = bool(manifest.overflowed or manifest.non_finite)

    def __call__(self, rows: NDArray[np.int64]) -> list[Row]:
        """Copy rows."""
        overflowed, non_finite = np.zeros((2, len(rows)), dtype=np.int64)
        if self._chunks is None or self._counted:
            stored = self.points.stored(rows)
            overflowed, non_finite = self.lost(stored)
        if self._chunks is None:
            packed = _packed(stored.transpose(0, 1).contiguous(), self.layout)
        else:
            packed = [self.points.reader.stored(row, self._chunks) for row in rows.tolist()]
        return [Row(*one) for one in zip(packed, overflowed.tolist(), non_finite.tolist(), strict=True)]


class Recoded(Rows):
    """Decoded values, encoded anew.

    Args:
        points, layout: as of :class:`Rows`.
        encoding: of the new cache.
    """

    def __init__(self, points: Points, layout: Layout, encoding: Encoding) -> None:
        super().__init__(points, layout)
        self._encoding, self._there = encoding, encoding.to(points.device)

    @torch.inference_mode()
    def __call__(self, rows: NDArray[np.int64]) -> list[Row]:
        """Decode rows, and encode them on the same device."""
        stored = self.points.stored(rows)
        encoded = EncodedBatch.of(self._there, self.points.decoded(stored))
        fresh = encoded.stored.cpu()
        overflowed, non_finite = self._encoding.saturate(fresh, encoded.extremes.cpu())
        before = self.lost(stored)[0] if self.points.cache.manifest.overflowed else np.zeros(len(rows), np.int64)
        counts = zip((overflowed.numpy() + before).tolist(), non_finite.tolist(), strict=True)
        return [Row(packed, *both) for packed, both in zip(_packed(fresh, self.layout), counts, strict=True)]


def _packed(stored: Tensor, layout: Layout) -> list[PackedSample]:
    """Pack elements ``(batch, stored points, tokens, columns)``."""
    samples: NDArray[Any] = stored.view(torch.uint8).numpy()
    return [pack(sample, layout) for sample in samples]

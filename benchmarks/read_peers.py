"""How others would read the values of ``read_stores.py``, each as its own users would do it well.

A reader takes a folder, says which of its ``files`` it reads, and is called with rows: it yields one tensor
``(batch, tokens, columns)`` a layer, ``BATCH`` rows at a time, valid until the next.
"""

import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from read_stores import BATCH, SAMPLE_BYTES, SHAPE, pt_path
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from losa_cache.sidenet.operand import Block

THREADS = 2  # or worker processes
REQUEST = 4 * 1024**2  # bytes
Rows = NDArray[np.int64]


class Reader(Protocol):
    """See above."""

    files: list[Path]

    def __call__(self, rows: Rows) -> Iterator[Sequence[Block]]:
        """Yield the batches of these rows."""
        ...


class Sequential:
    """The disk's limit: whole shards one after the other past the page cache, as ``dd bs=4M iflag=direct`` does.

    Args:
        threads: requests under way at once.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.files = shards(folder / "bfloat16.zarr")
        self._threads = ThreadPoolExecutor(threads)
        self._buffers = [mmap.mmap(-1, REQUEST) for _ in range(threads)]

    def __call__(self, rows: Rows) -> Iterator[Sequence[Block]]:
        """Read as many bytes as these rows have, and yield nothing."""
        handles = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in self.files]
        places = [(handle, at) for handle in handles for at in range(0, os.fstat(handle).st_size, REQUEST)]
        places = places[: len(rows) * SAMPLE_BYTES // REQUEST]
        count = len(self._buffers)
        parts = [places[first::count] for first in range(count)]
        list(self._threads.map(self._read, parts, self._buffers))
        for handle in handles:
            os.close(handle)
        yield from ()

    def _read(self, places: list[tuple[int, int]], buffer: mmap.mmap) -> None:
        for handle, at in places:
            os.preadv(handle, [buffer], at)


class IntoBatch(ABC):
    """Samples into one preallocated ``(BATCH, layers, tokens, channels)`` of bfloat16 bits."""

    def __init__(self) -> None:
        self.batch = np.zeros((BATCH, *SHAPE), dtype=np.uint16)
        self._layers = torch.from_numpy(self.batch).view(torch.bfloat16).unbind(1)

    def __call__(self, rows: Rows) -> Iterator[Sequence[Block]]:
        """Fill the batch again and again."""
        for first in range(0, len(rows), BATCH):
            self._fill(list(enumerate(rows[first : first + BATCH].tolist())))
            yield self._layers

    @abstractmethod
    def _fill(self, entries: list[tuple[int, int]]) -> None:
        """Fill entries of the batch with rows."""


class ByThreads(IntoBatch):
    """Each thread fills its share of the entries, one by one."""

    def __init__(self, threads: int = THREADS) -> None:
        super().__init__()
        self._threads, self._split = ThreadPoolExecutor(threads), threads

    def _fill(self, entries: list[tuple[int, int]]) -> None:
        list(self._threads.map(self._part, [entries[first :: self._split] for first in range(self._split)]))

    def _part(self, entries: list[tuple[int, int]]) -> None:
        for entry, row in entries:
            self._copy(row, entry)

    @abstractmethod
    def _copy(self, row: int, entry: int) -> None:
        """Fill one entry."""


class Memmap(ByThreads):
    """Whole samples out of one mapped array: with two threads the roof.

    Args:
        folder: of the values.
        threads: that copy.
        keep: map it once; otherwise for every pass, so that its pages can be dropped between.
    """

    def __init__(self, folder: Path, threads: int = THREADS, *, keep: bool = True) -> None:
        super().__init__(threads)
        self.files, self._keep = [folder / "plain.npy"], keep
        self._source = np.load(self.files[0], mmap_mode="r")

    def __call__(self, rows: Rows) -> Iterator[Sequence[Block]]:
        """Fill the batch again and again."""
        if not self._keep:
            self._source = np.load(self.files[0], mmap_mode="r")
        yield from super().__call__(rows)
        if not self._keep:
            del self._source

    def _copy(self, row: int, entry: int) -> None:
        self.batch[entry] = self._source[row]


class Zarr(ByThreads):
    """One basic slice a sample, straight into place."""

    def __init__(self, folder: Path, *, zarrs: bool) -> None:
        import zarr
        from zarr.core.buffer import default_buffer_prototype

        super().__init__()
        if zarrs:
            use_zarrs(THREADS)
        self.files = shards(folder / "bfloat16.zarr")
        array = zarr.open_array(folder / "bfloat16.zarr" / "activations" / "block", mode="r")
        self._array: Any = array
        self._place = default_buffer_prototype().nd_buffer.from_numpy_array

    def _copy(self, row: int, entry: int) -> None:
        out = self._place(self.batch[entry : entry + 1])
        self._array.get_basic_selection((slice(row, row + 1), ...), out=out)


class Tensorstore(IntoBatch):
    """One read a sample, straight into place, all of a batch under way at once."""

    def __init__(self, folder: Path) -> None:
        import tensorstore

        super().__init__()
        self.files = shards(folder / "bfloat16.zarr")
        store = {"driver": "file", "path": str(folder / "bfloat16.zarr" / "activations" / "block")}
        limits = {"data_copy_concurrency": {"limit": THREADS}}
        self._source: Any = tensorstore.open({"driver": "zarr3", "kvstore": store, "context": limits}).result()
        self._target: Any = tensorstore.array(self.batch)

    def _fill(self, entries: list[tuple[int, int]]) -> None:
        for done in [self._target[entry].write(self._source[row]) for entry, row in entries]:
            done.result()


class Hdf5(ByThreads):
    """One chunk a sample, straight into place, by one thread: h5py holds a lock."""

    def __init__(self, folder: Path) -> None:
        import h5py

        super().__init__(threads=1)
        self.files = [folder / "plain.h5"]
        self._source: Any = h5py.File(self.files[0])["activations"]

    def _copy(self, row: int, entry: int) -> None:
        self._source.read_direct(self.batch, np.s_[row], np.s_[entry])


class Loaded:
    """A torch DataLoader with worker processes; samples collated in shared memory."""

    def __init__(self, data: Dataset[Tensor], files: list[Path]) -> None:
        self.files, self._order = files, list[list[int]]()
        self._loader = DataLoader(data, batch_sampler=self._order, num_workers=THREADS, persistent_workers=True)

    def __call__(self, rows: Rows) -> Iterator[Sequence[Block]]:
        """Yield what the workers collated."""
        self._order[:] = [rows[first : first + BATCH].tolist() for first in range(0, len(rows), BATCH)]
        for batch in self._loader:
            yield batch.unbind(1)


class ZarrSamples(Dataset[Tensor]):
    """One basic slice a sample, by zarrs: opened in the worker, for it deadlocks in children of who has read by it."""

    def __init__(self, store: Path) -> None:
        self._store, self._array = store, None

    def __getitem__(self, row: int) -> Tensor:
        import zarr

        if self._array is None:
            use_zarrs(1)
            self._array = zarr.open_array(self._store / "activations" / "block", mode="r")  # type: ignore[assignment]
        array: Any = self._array
        return torch.from_numpy(array[row]).view(torch.bfloat16)


class PtSamples(Dataset[Tensor]):
    """One ``.pt`` file a sample, read or mapped."""

    def __init__(self, folder: Path, *, mapped: bool) -> None:
        self._folder, self._mapped = folder, mapped

    def __getitem__(self, row: int) -> Tensor:
        sample: Tensor = torch.load(pt_path(self._folder, row), weights_only=True, mmap=self._mapped)
        return sample


def use_zarrs(threads: int) -> None:
    """Have zarr decode with zarrs from now on.

    Raises:
        ImportError: if it is not there.
    """
    import zarr

    import_module("zarrs")
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": threads})


def shards(store: Path) -> list[Path]:
    """List the shards of a cache, first to last."""
    files = (store / "activations" / "block").glob("c.*")
    return sorted(files, key=lambda file: int(file.name.split(".")[1]))


def pt_files(folder: Path) -> list[Path]:
    """List all samples' files."""
    return sorted((folder / "pt").iterdir())

"""The values that ``read.py`` reads, in every form that is compared; their pages in memory, or not.

Values are normal, with a size of its own for each channel, rounded to bfloat16: no structure between neighbours, so
that chunks shrink by their exponents alone, as a ViT's do.
"""

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from losa_cache.cache.layout import plan_layout
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import EncodedBatch, Encoding, get_precision
from losa_cache.cache.shard import pack
from losa_cache.cache.storage import WriterLock
from losa_cache.cache.writer import CacheWriter, lock_cache

LAYERS, TOKENS, WIDTH, BATCH = 12, 197, 768, 64  # ViT-B/16
SHAPE = (LAYERS, TOKENS, WIDTH)
SAMPLE_BYTES = LAYERS * TOKENS * WIDTH * 2  # in bfloat16
POINTS = [f"block.{layer}" for layer in range(1, LAYERS + 1)]
STORES = {  # precision, compressed
    "bfloat16": ("bfloat16", False),
    "bfloat16-blosc": ("bfloat16", True),
    "int8": ("int8", False),
    "int8-blosc": ("int8", True),
}


def make(folder: Path, samples: int) -> None:
    """Write the same values as caches (``<name>.zarr``), as one array (``plain.npy``), one file a sample (``pt``) and,
    where h5py is there, one HDF5 file of one chunk a sample (``plain.h5``); sync them.
    """
    os.environ["LOSA_CACHE_HOME"] = str(folder / "home")
    (folder / "pt").mkdir()
    plain = np.lib.format.open_memmap(folder / "plain.npy", mode="w+", dtype=np.uint16, shape=(samples, *SHAPE))
    with ExitStack() as stack:
        try:
            import h5py
        except ImportError:
            chunks = None
        else:
            file = stack.enter_context(h5py.File(folder / "plain.h5", "w"))
            chunks = file.create_dataset("activations", plain.shape, plain.dtype, chunks=(1, *SHAPE))
        writers: list[tuple[CacheWriter, Encoding]] = []
        for first, blocks in values(samples):
            bits = torch.stack(blocks, dim=1)
            for name, (precision, compressed) in STORES.items() if not writers else ():
                encoding = get_precision(precision).fit([block[:32] for block in blocks], tokens=TOKENS, prefix=1)
                lock = stack.enter_context(lock_cache(folder / f"{name}.zarr"))
                writer = begin(lock, encoding, samples, compressed=compressed)
                writers.append((stack.enter_context(writer), encoding))
            for writer, encoding in writers:
                stored = EncodedBatch.of(encoding, blocks).stored.view(torch.uint8).numpy()
                for row, sample in enumerate(stored, start=first):
                    writer.append(row, pack(sample, writer.layout))
            for row, sample in enumerate(bits, start=first):
                torch.save(sample.clone(), pt_path(folder, row))
                plain[row] = sample.view(torch.uint16).numpy()
                if chunks is not None:
                    chunks[row] = plain[row]
        for writer, _ in writers:
            writer.finish()
    plain.flush()
    os.sync()


def values(samples: int) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield the first row of each batch, and its block outputs, bfloat16 ``(batch, tokens, channels)``."""
    generator = torch.Generator().manual_seed(0)
    channels = torch.randn(LAYERS, WIDTH, generator=generator).mul(0.5).exp()
    for first in range(0, samples, BATCH):
        shape = (min(BATCH, samples - first), TOKENS, WIDTH)
        yield first, [(torch.randn(shape, generator=generator) * channel).bfloat16() for channel in channels]


def begin(lock: WriterLock, encoding: Encoding, samples: int, *, compressed: bool) -> CacheWriter:
    """Begin a cache as an extraction of all blocks does."""
    precision = encoding.precision
    planes, tokens, columns = encoding.stored_shape(LAYERS, TOKENS, WIDTH)
    planned = plan_layout(samples=samples, layers=planes, tokens=tokens, columns=columns, itemsize=precision.itemsize)
    layout = replace(planned, compressed=compressed)
    manifest = Manifest(
        fields={
            "tap": "block",
            "layers": list(range(1, LAYERS + 1)),
            "embedding": False,
            "precision": precision.name,
            "views": {"count": 1, "augment": None, "clips": 1},
        },
        tokens={"total": TOKENS, "prefix": 1, "grid": [14, 14]},
        width=WIDTH,
        depth=LAYERS,
        classes=["one"],
        tail={},
        software={},
        encoding={"compressed": 1.0 if compressed else None},
    )
    labels, ids = np.zeros(samples, dtype=np.int64), [f"{row:06d}" for row in range(samples)]
    return CacheWriter.create(lock, manifest, layout, encoding, labels=labels, ids=ids, tail={})


def pt_path(folder: Path, row: int) -> Path:
    """File of one sample."""
    return folder / "pt" / f"{row:06d}.pt"


def fill(files: Iterable[Path]) -> None:
    """Read files into the page cache."""
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.read(2**24):
                pass


def drop(files: Iterable[Path]) -> None:
    """Drop the pages of files, which are synced and which nobody maps, from the page cache."""
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def held(files: Iterable[Path]) -> float:
    """Ask ``mincore`` what share of the pages of files the page cache holds."""
    here, libc = [], ctypes.CDLL(None)
    for path in files:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), dtype=np.uint8)
            start = ctypes.c_char.from_buffer(mapped)
            if libc.mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), pages.ctypes.data_as(ctypes.c_void_p)):
                raise OSError("mincore failed")
            del start  # or the file stays mapped
            here.append(pages & 1)
    return float(np.concatenate(here).mean())

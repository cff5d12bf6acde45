"""A safetensors file as tensors that are read when they are used, and can be forgotten again."""

import json
import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class MappedFile:
    """The tensors of a safetensors file, mapped into memory: the system reads a page when it is touched.

    Attributes:
        tensors: by name, not to be written to: :meth:`forget` would undo it.

    Raises:
        ValueError: if it is no safetensors file, or one of a dtype that is not known here.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size - 8:
                raise ValueError("no safetensors header")
            header: dict[str, dict[str, Any]] = json.loads(file.read(length))
            # private and writable, as torch wants its memory; nobody writes
            self._map = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        header.pop("__metadata__", None)
        self.tensors = {name: self._tensor(entry, 8 + length) for name, entry in header.items()}

    def forget(self) -> None:
        """Let go of the pages that were read: the next use reads them again, as a rule from the system's cache."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def _tensor(self, entry: dict[str, Any], base: int) -> Tensor:
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"unknown dtype {entry['dtype']}")
        dtype, (start, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
        if start == end:
            return torch.empty(entry["shape"], dtype=dtype)
        count = (end - start) // dtype.itemsize
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=base + start).view(entry["shape"])

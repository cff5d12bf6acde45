"""What a file is that is given for weights: told by its first and last bytes, before any of it is parsed."""

import json
import zipfile
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

HEAD = 512
LEAST_HEADER, MOST_HEADER = 2, 100_000_000  # bytes of a safetensors header; the most is the library's own limit
_TAIL = 8
_LEVELDB_END = bytes.fromhex("57fb808b247547db")  # of the index that TensorFlow writes beside its tensors
_ARCHIVES = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a rar archive",
}
_CONVERT = "convert it to safetensors"
_UNPACK = "unpack it, and give the checkpoint in it"
_AGAIN = "download it again"
_ITSELF = "download the file itself"


class Form(Enum):
    """How a file that can be read holds its tensors."""

    SAFETENSORS = auto()
    ZIPPED = auto()  # torch.save since 1.6
    PICKLE = auto()  # torch.save before that
    NPZ = auto()


@dataclass(frozen=True)
class Foreign:
    """What a file is, in place of a checkpoint, and what to do: words of one sentence."""

    what: str
    advice: str


def recognise(path: Path) -> Form | Foreign:
    """Tell how a regular file holds its tensors, or what it is instead.

    Raises:
        OSError: if it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
        file.seek(max(0, size - _TAIL))
        tail = file.read(_TAIL)
    if head.startswith(b"PK"):
        return _in_zip(path)
    if _has_header(head, size):
        return _in_safetensors(path, size)
    return Form.PICKLE if head.startswith(b"\x80") else _something_else(path.name, head, tail)


def _something_else(name: str, head: bytes, tail: bytes) -> Foreign:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    archive = next((kind for magic, kind in _ARCHIVES.items() if head.startswith(magic)), "a tar archive")
    kinds = (
        (not head, "empty", _AGAIN),
        (head.startswith(b"version https://git-lfs"), _no("a Git LFS pointer"), f"{_ITSELF} (git lfs pull)"),
        (text.startswith((b"<?xml", b"<error")), _no("an XML page (what a server answered)"), _ITSELF),
        (text.startswith(b"<"), _no("a web page"), _ITSELF),
        (name.endswith(".index.json"), _no("the index of a checkpoint in several files"), "give one in a single file"),
        (text.startswith((b"{", b"[")), _no("JSON text (what a server answered)"), _ITSELF),
        (head.startswith(tuple(_ARCHIVES)) or head[257:262] == b"ustar", _no(archive), _UNPACK),
        (head.startswith(b"\x89HDF"), "an HDF5 file, as Keras writes them", _CONVERT),
        (head.startswith(b"\x93NUMPY"), "a single numpy array", "a JAX checkpoint is an .npz of many"),
        (head.startswith(b"GGUF"), "a GGUF file", "take the model's safetensors file"),
        (head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"%PDF")), _no("a picture or a document"), _ITSELF),
        (name.endswith(".onnx"), "an ONNX model", "take the checkpoint that it was made of"),
        (head[:1] == b"\x08" and b"pytorch" in head, "an ONNX model", "take the checkpoint that it was made of"),
        (tail == _LEVELDB_END or ".data-0000" in name or name.endswith(".pb"), "a TensorFlow checkpoint", _CONVERT),
        (not head.strip(b"\x00"), _no("zeros (a download that never came)"), _AGAIN),
        (True, "no checkpoint of a known form, and cannot be read", "give a safetensors, pth or npz file"),
    )
    return next(Foreign(what, advice) for holds, what, advice in kinds if holds)


def _no(what: str) -> str:
    return f"{what}, not weights"


def _has_header(head: bytes, size: int) -> bool:
    """Tell whether a file begins as safetensors do: 8 bytes of length, then JSON."""
    length = int.from_bytes(head[:8], "little")
    return size >= 9 and head[8:9] == b"{" and LEAST_HEADER <= length <= max(MOST_HEADER, size)


def _in_safetensors(path: Path, size: int) -> Form | Foreign:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MOST_HEADER:
            return Foreign(f"no safetensors file, for its header would have {length} bytes", _AGAIN)
        if length > size - 8:
            return Foreign(f"cut off in its header ({size} bytes are there, it needs {8 + length} and more)", _AGAIN)
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            needed = 8 + length + max(ends, default=0)
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return Foreign("damaged in its header", _AGAIN)
    if needed > size:
        return Foreign(f"cut off ({size} of {needed} bytes are there)", _AGAIN)
    return Form.SAFETENSORS


def _in_zip(path: Path) -> Form | Foreign:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return Foreign("cut off or damaged (a zip archive without its end)", _AGAIN)
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        return Foreign("a TorchScript program", "save its model's state_dict(), for losa-cache runs no code of a file")
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return Form.ZIPPED
    if names and all(name.endswith(".npy") for name in names):
        return Form.NPZ
    return Foreign(_no("a zip archive"), _UNPACK)

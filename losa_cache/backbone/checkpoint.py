"""A checkpoint file to tensors by name: what it wraps them in is taken off, and nothing of it is run."""

import argparse
import logging
import os
import pickle
import warnings
import zipfile
import zlib
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from losa_cache.backbone.foreign import Foreign, Form, recognise
from losa_cache.backbone.mapped import MappedFile
from losa_cache.errors import UserError
from losa_cache.machine.memory import available_memory
from losa_cache.machine.sizes import readable_bytes
from losa_cache.outside import other_kind

log = logging.getLogger(__name__)

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "teacher", "encoder", "student")
"""Keys under which training scripts keep a model's tensors, the first found of them is taken: timm's order, then DINO's
and I-JEPA's."""
DEEPEST = 4
CHUNK = 2**22
PATCHES = "patch_embed.proj.weight"  # the trunk's tensors have the same prefix as this one
_OF_TIMM = {"visual", "image_encoder", "vision_encoder", "beit3", "radio_model"}  # which its filters take off
_AVERAGED = {"teacher", "ema", "model_ema", "state_dict_ema"}
_A_FILE = "--weights takes a file, and a folder for the backbone vivit alone"
_ANOTHER = "choose another file"


def require_file(path: Path) -> Form:
    """Check that a path names a file of weights, without reading more than its head.

    Returns:
        how it holds its tensors.

    Raises:
        UserError: if there is none, or what is there is something else: a folder, a pipe, a web page, an archive, ...
    """
    try:
        kind = other_kind(os.stat(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"there is no weights file {str(path)!r}: --weights takes a file, or the word random."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(_unreadable(path, getattr(error, "strerror", None) or str(error), _ANOTHER)) from error
    if kind is not None:
        inside = next((name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).exists()), "")
        advice = f"give the file in it, {str(path / inside)!r}" if inside else _A_FILE
        raise UserError(f"weights {str(path)!r} are {kind}, not a file: {advice}.")
    try:
        found = recognise(path)
    except OSError as error:
        raise UserError(_unreadable(path, error.strerror or str(error), _ANOTHER)) from error
    if isinstance(found, Foreign):
        raise UserError(f"weights file {str(path)!r} is {found.what}: {found.advice}.")
    return found


def read(path: Path, *, only: Form | None = None) -> dict[str, Tensor]:
    """Read the tensors of a safetensors or pth file, by the names that they have in a model.

    Args:
        path: of the file.
        only: the form that it must have.

    Raises:
        UserError: if it is no such file, is damaged, or holds more than tensors.
    """
    form = require_file(path)
    if only not in (None, form):
        raise UserError(f"{str(path)!r} is no {only.name.lower()} file, whatever its name says.")
    require_room(path, form)
    if form is Form.SAFETENSORS:
        try:
            content: Any = load_file(path)
        except Exception as error:  # SafetensorError, and what torch makes of odd shapes and dtypes
            raise UserError(_unreadable(path, _first_line(error))) from error
    else:
        if form is Form.ZIPPED:
            _require_checksums(path)
        content = _unpickle(path)
    return _unwrap(content, path)


def open_mapped(path: Path) -> tuple[dict[str, Tensor], MappedFile]:
    """Give the tensors of a safetensors file as :func:`read` does, without reading them.

    Raises:
        UserError: as of :func:`read`, and for another kind of checkpoint.
    """
    if require_file(path) is not Form.SAFETENSORS:
        raise UserError(f"weights file {str(path)!r} is no safetensors file, whatever its name says: rename it.")
    try:
        with safe_open(path, "pt"):  # which checks that tensors neither overlap nor leave gaps
            mapped = MappedFile(path)
    except (SafetensorError, ValueError, LookupError, TypeError, OSError, RuntimeError) as error:
        raise UserError(_unreadable(path, _first_line(error))) from error
    return _unwrap(mapped.tensors, path), mapped


def require_room(path: Path, form: Form) -> None:
    """Refuse a checkpoint that memory does not hold once it is unpacked.

    Raises:
        UserError: saying both sizes.
    """
    size, free = path.stat().st_size, available_memory(torch.device("cpu"))
    if form in (Form.ZIPPED, Form.NPZ):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    if size > free:
        raise UserError(
            f"weights file {str(path)!r} takes {readable_bytes(size)} of memory, and {readable_bytes(free)} are free: "
            "free some, or take a safetensors file and --max-device-memory."
        )


def _require_checksums(path: Path) -> None:
    """Read a zip archive through, since torch does not compare its checksums; it may have been told to write none."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in filter(attrgetter("CRC"), archive.infolist()):
                with archive.open(entry) as file:
                    while file.read(CHUNK):
                        pass
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(_unreadable(path, f"damaged: {_first_line(error)}")) from error


def _unpickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):  # timm's own scripts
            warnings.simplefilter("ignore")  # about how a file was pickled
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        objects = _objects_in(path)
        holds = f"pickled objects ({', '.join(objects[:3])})" if objects else "more than tensors, or is damaged"
        raise UserError(
            f"weights file {str(path)!r} cannot be read: it holds {holds}, and losa-cache runs no code of a file: save "
            "the model's state_dict()."
        ) from error
    except Exception as error:  # what torch makes of a damaged file is of any type
        raise UserError(_unreadable(path, f"damaged or cut off: {_first_line(error)}")) from error


def _objects_in(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # of the format before zip archives torch does not tell them
        return []


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the tensors of one model in what a file holds, and take the prefix off their names."""
    for _ in range(DEEPEST):
        sets = [key for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)]
        if not sets:
            break
        if len(sets) > 1:
            log.info("%s holds several sets of weights: %s is taken, of %s.", path, sets[0], ", ".join(sets))
        content = content[sets[0]]
    named = content.items() if isinstance(content, dict) else ()
    tensors = {name: value for name, value in named if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"weights file {str(path)!r} holds no tensors by name: save the model's state_dict().")
    for name, tensor in tensors.items():
        whole = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not whole or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise UserError(f"weights file {str(path)!r} does not hold every value of {name!r}: save it densely.")
    return _without_prefix(tensors, path)


def _without_prefix(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Leave the trunk's tensors by their own names: what training wraps around a model also begins their names."""
    found = sorted(name.removesuffix(PATCHES) for name in tensors if name.endswith("." + PATCHES) or name == PATCHES)
    if "" in found:
        return tensors
    if len(found) > 1:
        averaged = [prefix for prefix in found if _AVERAGED & set(prefix.split("."))]
        if len(averaged) != 1:
            raise UserError(
                f"weights file {str(path)!r} holds several trunks ({', '.join(found[:4])}): save the one to be used."
            )
        log.info("%s holds several trunks: %s is taken, of %s.", path, averaged[0], ", ".join(found))
        found = averaged
    prefix = found[0] if found else _shared_wrapper(tensors)
    parts = prefix.split(".")[:-1]
    known = next((at for at, part in enumerate(parts) if part in _OF_TIMM), len(parts))
    prefix = "".join(f"{part}." for part in parts[:known])
    if not prefix:
        return tensors
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if len(inside) < len(tensors):
        log.info("%d tensors of %s are not part of its %s and left out.", len(tensors) - len(inside), path, prefix[:-1])
    return inside


def _shared_wrapper(tensors: dict[str, Tensor]) -> str:
    """Give what DDP and torch.compile put before every name of a trunk that has other names than timm's."""
    prefix = ""
    for part in ("_orig_mod.", "module.", "_orig_mod."):
        if all(name.startswith(prefix + part) for name in tensors):
            prefix += part
    return prefix


def _unreadable(path: Path, reason: str, advice: str = "download it again") -> str:
    return f"weights file {str(path)!r} cannot be read ({reason}): {advice}."


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__

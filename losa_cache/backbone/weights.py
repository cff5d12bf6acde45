"""Checkpoint files into a trunk, with nothing left unset silently; and the hash that identifies the weights."""

import hashlib
import logging
import sys
from pathlib import Path

import torch
from timm.models import clean_state_dict, load_state_dict
from torch import Tensor, nn

from losa_cache.backbone.mapped import MappedFile
from losa_cache.errors import UserError

log = logging.getLogger(__name__)


def load_file(model: nn.Module, path: Path) -> None:
    """Load a safetensors, pth or npz checkpoint, converted by timm's own filter for this architecture.

    The position table is resampled to the trunk's input size. Tensors of a classifier are ignored; every tensor of
    the trunk must be found. No pickled code is ever run (``weights_only=True``; npz without objects).

    Raises:
        UserError: if the file is missing, unreadable or does not fit the trunk.
    """
    if not path.is_file():
        raise UserError(f"there is no weights file {str(path)!r}: --weights takes a file, or the word random.")
    try:
        if path.suffix == ".npz":
            model.load_pretrained(str(path))  # type: ignore[operator]  # timm's reader of the original JAX files
            return
        state = load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"weights file {str(path)!r} cannot be read ({type(error).__name__}: {error}).") from error
    _fill(model, state, path)


def map_file(model: nn.Module, path: Path) -> MappedFile:
    """Let a model's weights be those of a safetensors file, as :func:`load_file` would, without reading it.

    Only tensors that are stored in another dtype or shape than the model has them in are read, and converted.

    Raises:
        UserError: as of :func:`load_file`.
    """
    if not path.is_file():
        raise UserError(f"there is no weights file {str(path)!r}: --weights takes a file, or the word random.")
    try:
        mapped = MappedFile(path)
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise UserError(f"weights file {str(path)!r} cannot be read ({type(error).__name__}: {error}).") from error
    _fill(model, clean_state_dict(mapped.tensors), path, assign=True)
    return mapped


def _fill(model: nn.Module, state: dict[str, Tensor], path: Path, *, assign: bool = False) -> None:
    """Load tensors, converted by timm's filter: copied, or themselves where their dtype is the model's."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        state = convert(state, model) if convert else state
        if assign:
            dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
            state = {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in state.items()}
        result = model.load_state_dict(state, strict=False, assign=assign)
    except (RuntimeError, KeyError, AttributeError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"weights file {str(path)!r} does not fit this backbone ({first}).") from error
    if result.missing_keys:
        missing = ", ".join(result.missing_keys[:3])
        raise UserError(
            f"weights file {str(path)!r} does not fit this backbone: "
            f"{len(result.missing_keys)} of its tensors are not in the file ({missing}, ...)."
        )
    unused = [key for key in result.unexpected_keys if not key.startswith(("head", "fc.", "mask_token"))]
    if unused:
        log.warning("%d tensors of %s are not part of the backbone: %s, ...", len(unused), path, ", ".join(unused[:3]))


def weights_hash(model: nn.Module, file: MappedFile | None = None) -> str:
    """Hash a trunk's tensors: sha256 over name, dtype, shape and bytes of each, in the order of their names.

    Args:
        model: its ``state_dict`` is hashed.
        file: that they lie in: what was read for a tensor is forgotten again.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
        if file is not None:
            file.forget()
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")

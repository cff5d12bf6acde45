"""The original JAX checkpoints in .npz, as Google published them: read by timm, held to the trunk before that."""

import math
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from torch import nn

from losa_cache.backbone.checkpoint import require_room
from losa_cache.backbone.foreign import Form
from losa_cache.errors import UserError

BLOCK = re.compile(r"Transformer/encoderblock(?:_(\d+))?/(.+)")
_PREFIXES = ("", "opt/target/", "params/", "params/img/")
_KERNEL = "embedding/kernel"
_PARTS = {  # of a block: their names, by kind and number, and ours with how much of it theirs is
    r"LayerNorm_0/scale": ("norm1.weight", 1),
    r"LayerNorm_0/bias": ("norm1.bias", 1),
    r"LayerNorm_[12]/scale": ("norm2.weight", 1),
    r"LayerNorm_[12]/bias": ("norm2.bias", 1),
    r"MultiHeadDotProductAttention_[01]/(query|key|value)/kernel": ("attn.qkv.weight", 3),
    r"MultiHeadDotProductAttention_[01]/(query|key|value)/bias": ("attn.qkv.bias", 3),
    r"MultiHeadDotProductAttention_[01]/out/kernel": ("attn.proj.weight", 1),
    r"MultiHeadDotProductAttention_[01]/out/bias": ("attn.proj.bias", 1),
    r"MlpBlock_[03]/Dense_0/kernel": ("mlp.fc1.weight", 1),
    r"MlpBlock_[03]/Dense_0/bias": ("mlp.fc1.bias", 1),
    r"MlpBlock_[03]/Dense_1/kernel": ("mlp.fc2.weight", 1),
    r"MlpBlock_[03]/Dense_1/bias": ("mlp.fc2.bias", 1),
}
_OUTSIDE = {
    "embedding/bias": "patch_embed.proj.bias",
    "cls": "cls_token",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
}


class Header(NamedTuple):
    """What an array's header says: nothing of its values is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


def load(model: nn.Module, path: Path) -> None:
    """Fill a trunk from a JAX checkpoint, by timm's reader.

    Raises:
        UserError: if the file is damaged, no checkpoint of a ViT, or of another architecture.
    """
    if not hasattr(model, "load_pretrained"):
        raise UserError(f"weights file {str(path)!r} is a JAX checkpoint of a plain ViT, which this backbone is not.")
    require_room(path, Form.NPZ)
    headers = _read_headers(path)
    prefix = next((prefix for prefix in _PREFIXES if prefix + _KERNEL in headers), None)
    if prefix is None:
        raise UserError(
            f"weights file {str(path)!r} has arrays of other names than a ViT's JAX checkpoint ({min(headers)!r}, for "
            "one): pass safetensors or pth."
        )
    require_architecture(model, {n.removeprefix(prefix): h for n, h in headers.items() if n.startswith(prefix)}, path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)  # what timm's reader does not set is seen below
    try:
        model.load_pretrained(str(path))  # type: ignore[operator]
    except Exception as error:  # a tensor that is not there, or of another shape
        reason = f"it lacks {error.args[0]}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise UserError(f"weights file {str(path)!r} does not fit this backbone ({reason}).") from error
    unset = [name for name, parameter in model.named_parameters() if torch.isnan(parameter).all()]
    if unset:
        raise UserError(
            f"weights file {str(path)!r} does not fit this backbone: it has no values for {len(unset)} of its tensors "
            f"({', '.join(unset[:3])})."
        )


def require_architecture(model: nn.Module, headers: dict[str, Header], path: Path) -> None:
    """Check what timm's reader does not: it takes the blocks that it needs, and stretches what does not fit.

    Raises:
        UserError: naming an array that does not fit.
    """
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    depth = len(model.blocks)  # type: ignore[arg-type]
    refused = f"weights file {str(path)!r} does not fit this backbone: "
    patches = state.get("patch_embed.proj.weight")
    kernel = headers[_KERNEL].shape
    if len(kernel) != 4:
        raise UserError(f"{refused}{_KERNEL} has {len(kernel)} axes instead of 4.")
    if patches is not None and "conv_root/kernel" not in headers and (*kernel[:1:-1], *kernel[:2]) != patches:
        raise UserError(
            f"{refused}its patches are {_times(kernel[:3])} values, to tokens of {kernel[3]} channels; the backbone's "
            f"are {_times((*patches[2:], patches[1]))}, to {patches[0]}."
        )
    for name, header in headers.items():
        if header.dtype.kind != "f":
            raise UserError(f"{refused}{name} is stored as {header.dtype}, not as floating-point numbers.")
        if (found := BLOCK.fullmatch(name)) is None:
            ours = _OUTSIDE.get(name, "")
            if ours and math.prod(header.shape) != math.prod(state.get(ours, (0,))):
                there = f"{ours} of {_times(state[ours])}" if ours in state else "nothing in the backbone"
                raise UserError(f"{refused}{name} is {_times(header.shape)}, for {there}.")
            continue
        number, part = found.groups()
        if number is None and header.shape[:1] != (depth,):  # all blocks in one array
            raise UserError(f"{refused}it has {header.shape[0] if header.shape else 0} blocks, the backbone {depth}.")
        if number is not None and int(number) >= depth:
            raise UserError(f"{refused}it has a block {int(number) + 1} ({name}), the backbone has {depth}.")
        known = next((ours for theirs, ours in _PARTS.items() if re.fullmatch(theirs, part)), None)
        ours = f"blocks.{int(number or 0)}.{known[0]}" if known else ""
        if known is None or ours not in state:
            raise UserError(f"{refused}it has an array that the backbone has not ({name}).")
        count = math.prod(header.shape) // (depth if number is None else 1)
        if count * known[1] != math.prod(state[ours]):
            raise UserError(f"{refused}{name} is {_times(header.shape)}, for {ours} of {_times(state[ours])}.")


def _read_headers(path: Path) -> dict[str, Header]:
    """Read the headers of all arrays, and hold them to the bytes that are there."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    version = npy.read_magic(file)
                    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                    shape, _, dtype = read(file)
                    start = file.tell()
                name = entry.filename.removesuffix(".npy")
                if dtype.hasobject or start + math.prod(shape) * dtype.itemsize != entry.file_size:
                    raise ValueError(f"{name} has {entry.file_size - start} bytes for {_times(shape)} of {dtype}")
                found[name] = Header(shape, dtype)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"weights file {str(path)!r} cannot be read ({error}): download it again.") from error
    return found


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"

"""Checkpoint files into a trunk, with nothing left unset or left over in silence; and the hash of the weights."""

import hashlib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from losa_cache.backbone import checkpoint, jax_file
from losa_cache.backbone.foreign import Form
from losa_cache.backbone.kin import PATCHES, POSITIONS, describe, nearest_architecture
from losa_cache.backbone.mapped import MappedFile
from losa_cache.errors import UserError

log = logging.getLogger(__name__)

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NAMED = 3  # tensors that a sentence names
TRUNK = {  # the parts of a ViT whose outputs or tail a side network is trained on
    *("blocks", "layers", "block", "encoder", "patch_embed", "norm", "norm_pre", "fc_norm", "pos_embed", "rope"),
    *("cls_token", "reg_token", "register_tokens", "dist_token", "rel_pos_bias", "embeddings"),
}
_BESIDE = (
    *("decoder", "text", "head", "predictor", "proj", "dino", "ibot", "lm_", "mask", "class", "fc", "pool"),
    *("attn_pool", "contrast", "aux", "logit", "loss", "queue", "prototypes", "pre_logits"),
)
"""How the names of a checkpoint's other parts begin: they may hold layers with numbers of their own."""


def load_file(model: nn.Module, path: Path) -> None:
    """Load a safetensors, pth or npz checkpoint, converted by timm's own filter for this architecture.

    The position table is resampled to the trunk's input size. Heads, decoders and what else lies outside the trunk is
    left out; every tensor of the trunk must be found, and every tensor of the file's trunk must be used. No pickled
    code is ever run (``weights_only=True``; npz without objects).

    Raises:
        UserError: if the file is missing, is no checkpoint, or does not fit the trunk.
    """
    if checkpoint.require_file(path) is Form.NPZ:
        jax_file.load(model, path)
    else:
        _fill(model, checkpoint.read(path), path)
    require_sound(model, f"weights file {str(path)!r}")


def map_file(model: nn.Module, path: Path) -> MappedFile:
    """Let a model's weights be those of a safetensors file, as :func:`load_file` would, without keeping them in memory.

    Only tensors that are stored in another dtype or shape than the model has them in are converted.

    Raises:
        UserError: as of :func:`load_file`.
    """
    tensors, mapped = checkpoint.open_mapped(path)
    _fill(model, tensors, path, assign=True)
    require_sound(model, f"weights file {str(path)!r}", mapped)
    return mapped


def require_sound(model: nn.Module, source: str, file: MappedFile | None = None) -> None:
    """Check that weights are numbers: no NaN, none infinite, and no matrix of a layer that holds nothing but zeros.

    Args:
        model: to check.
        source: of its weights, for the error.
        file: that they lie in: what was read of it is forgotten again.

    Raises:
        UserError: naming the first tensor that is not sound.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        total = tensor.sum()  # at the speed of memory; where it overflows, one by one
        if not total.isfinite() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise UserError(f"{source} holds {count} values in {name} that are not finite: take another checkpoint.")
        if total == 0 and tensor.ndim > 1 and name.endswith(".weight") and not tensor.any():
            raise UserError(f"{source} holds nothing but zeros in {name}: if it was downloaded, do that again.")
        if file is not None:
            file.forget()


def _fill(model: nn.Module, raw: dict[str, Tensor], path: Path, *, assign: bool = False) -> None:
    """Load tensors, converted by timm's filter: copied, or themselves where their dtype is the model's."""
    ours = model.state_dict()
    refused = f"weights file {str(path)!r} does not fit this backbone"
    if reason := _other_patches(raw, ours):
        raise UserError(f"{refused}: {reason}.")
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        state = convert(dict(raw), model) if convert else raw
    except Exception as error:  # a filter meets shapes and names that it does not expect
        reason = misfit(raw, ours) or str(error).strip().partition("\n")[0]
        raise UserError(f"{refused}: {reason}.") from error
    if reason := misfit(state, ours):
        raise UserError(f"{refused}: {reason}.")
    _say_what_is_left_out(set(state) - set(ours), path)
    if POSITIONS in ours and POSITIONS in raw and raw[POSITIONS].shape[-2] != ours[POSITIONS].shape[-2]:
        log.info(
            "%s has positions of %d tokens, which are resampled to %d.",
            path,
            raw[POSITIONS].shape[-2],
            ours[POSITIONS].shape[-2],
        )
    known = {name: tensor for name, tensor in state.items() if name in ours}
    if assign:
        known = {name: tensor.to(ours[name].dtype) for name, tensor in known.items()}
    model.load_state_dict(known, assign=assign)


def misfit(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str:
    """Say in which tensors a checkpoint and a trunk differ; nothing where they belong together.

    Args:
        state: the checkpoint's tensors, by timm's names.
        ours: the trunk's.
    """
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items() if name in ours or in_trunk(name)}
    missing = [name for name in ours if name not in state]
    extra = [name for name in theirs if name not in ours]
    shapes = [name for name in theirs if name in ours and theirs[name] != tuple(ours[name].shape)]
    wrong = []
    if extra:
        wrong.append(f"the backbone has no {_some(extra)}")
    if missing:
        wrong.append(f"it lacks {len(missing)} of its tensors ({_some(missing)})")
    if shapes:
        first = shapes[0]
        there, here = _times(theirs[first]), _times(tuple(ours[first].shape))
        wrong.append(f"{first} is {there} there and {here} here" + (", for one" if len(shapes) > 1 else ""))
    if wrong:
        return "; ".join(wrong) + _kin(theirs, {name: tuple(tensor.shape) for name, tensor in ours.items()})
    return next((text for name in theirs if (text := _other_dtype(name, state[name], ours[name]))), "")


def in_trunk(name: str) -> bool:
    """Tell whether a tensor lies in a model's trunk, and not in a head or a decoder beside it."""
    first, *more = name.split(".")
    return first in TRUNK or (any(part.isdecimal() for part in more) and not first.startswith(_BESIDE))


def _kin(theirs: dict[str, tuple[int, ...]], ours: dict[str, tuple[int, ...]]) -> str:
    """Say what architecture a checkpoint is of, if its tensors do."""
    if name := nearest_architecture(theirs):
        return f"; its tensors are those of {name!r}"
    there, here = describe(theirs), describe(ours)
    if not there and any(".layer.0." in name or ".layers.0." in name for name in theirs):
        return "; its names are not timm's: take the checkpoint that timm publishes of this model"
    return f"; its trunk is {there}, the backbone's {here}" if there and here and there != here else ""


def _other_patches(raw: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str:
    """Say whether patches have another size: timm would stretch the kernel, which makes another model of it."""
    kernel = next((tensor for name, tensor in raw.items() if name.endswith((PATCHES, "visual.conv1.weight"))), None)
    if kernel is None or PATCHES not in ours or kernel.ndim != 4 or ours[PATCHES].ndim != 4:
        return ""
    there, here = tuple(kernel.shape[-2:]), tuple(ours[PATCHES].shape[-2:])
    return f"its patches are {_times(there)} pixels, the backbone's {_times(here)}" if there != here else ""


def _other_dtype(name: str, theirs: Tensor, ours: Tensor) -> str:
    if not ours.is_floating_point() or theirs.dtype in FLOATS:
        return ""
    kind = str(theirs.dtype).removeprefix("torch.")
    return f"{name} is stored as {kind}: give weights in float32, float16 or bfloat16"


def _say_what_is_left_out(names: set[str], path: Path) -> None:
    """Say in one line which parts of a checkpoint a frozen trunk has no use for."""
    parts = sorted({name.partition(".")[0] for name in names})
    if parts:
        more = f" and {len(parts) - 8} more" if len(parts) > 8 else ""
        log.info("%s has more than the trunk, which is left out: %s%s.", path, ", ".join(parts[:8]), more)


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


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

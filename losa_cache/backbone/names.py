"""Backbone names: short names, the two trunks that timm does not have, timm's own; and video models made of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from losa_cache.errors import UserError, nearest

SHORT_NAMES = {
    "vit_s": "vit_small_patch16_224.augreg_in21k",
    "vit_b": "vit_base_patch16_224.orig_in21k",  # the VTAB-1k literature's ViT-B
    "vit_l": "vit_large_patch16_224.augreg_in21k",
    "vit_h": "vit_huge_patch14_224.orig_in21k",
    "vit_g": "vit_giant_patch14_clip_224.laion2b",
    "vit_G": "vit_gigantic_patch14_clip_224.laion2b",
}
DIGITS_WEIGHTS = Path(__file__).with_name("vit_digits.safetensors")


def vit_digits(img_size: int | None = None) -> nn.Module:
    """Build the embedded default: 8 blocks x 96 channels, 16 px, patch 2 (``scripts/pretrain_digits.py`` trains it)."""
    model = VisionTransformer(
        img_size=img_size or 16, patch_size=2, embed_dim=96, depth=8, num_heads=3, num_classes=0, dynamic_img_size=False
    )
    return _with_config(model, input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)


def vit_e(img_size: int | None = None) -> nn.Module:
    """Build ViT-e/14: 56 x 1792, mlp 15360, 16 heads. GAP and no CLS token, so n = 256, are *not from the paper*."""
    model = VisionTransformer(
        img_size=img_size or 224,
        patch_size=14,
        embed_dim=1792,
        depth=56,
        num_heads=16,
        mlp_ratio=15360 / 1792,
        class_token=False,
        global_pool="avg",
        num_classes=0,
    )
    return _with_config(model, input_size=(3, 224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)


OWN_TRUNKS: dict[str, Callable[[int | None], nn.Module]] = {"vit_digits": vit_digits, "vit_e": vit_e}
VIDEO = "vivit:"
"""In front of the name of an image ViT: the video model made of it (``losa_cache.backbone.vivit``)."""
SHORT_VIDEO_NAMES = {f"vi{short}": VIDEO + full for short, full in (SHORT_NAMES | {o: o for o in OWN_TRUNKS}).items()}
CHECKPOINT = "vivit"
"""The name of a ViViT whose shape is told by its checkpoint (``losa_cache.backbone.hugging_face``)."""


def _with_config(model: nn.Module, **config: Any) -> nn.Module:
    """Attach a timm pretrained config, so that timm's data config resolves as for its own models."""
    base = {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center", "num_classes": 0, "classifier": "head"}
    model.pretrained_cfg = base | config  # type: ignore[assignment]
    return model


def full_name(name: str) -> str:
    """Resolve a short name to timm's; own trunks and timm names stay as they are, ``vivit:`` stays in front.

    Raises:
        UserError: for a name that nobody knows, with the nearest names.
    """
    if name in OWN_TRUNKS:
        return name
    if name in SHORT_VIDEO_NAMES:
        return SHORT_VIDEO_NAMES[name]
    if name.startswith(VIDEO):
        return VIDEO + full_name(name.removeprefix(VIDEO)).removeprefix(VIDEO)
    resolved = SHORT_NAMES.get(name, name)
    if not timm.is_model(resolved.split(".")[0]):
        known = [*SHORT_NAMES, *OWN_TRUNKS, *SHORT_VIDEO_NAMES, CHECKPOINT, *timm.list_models()]
        raise UserError(f"unknown backbone {name!r}{nearest(name, known)}.")
    architecture, _, tag = resolved.partition(".")
    tags = timm.list_pretrained(architecture)
    if tag and resolved not in tags:
        raise UserError(f"backbone {architecture!r} has no weights tagged {tag!r}; timm lists: {', '.join(tags)}.")
    return resolved


def build(name: str, *, img_size: int | None, pretrained: bool) -> nn.Module:
    """Build the trunk of a resolved name, without a classifier, at ``img_size`` pixels (default: its own).

    Raises:
        UserError: if the architecture takes no image size, its weights cannot be had, or memory does not hold them.
    """
    options: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
    try:
        if name in OWN_TRUNKS:
            return OWN_TRUNKS[name](img_size)
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except TypeError as error:
        raise UserError(f"backbone {name!r} does not take --img-size {img_size} ({error}).") from error
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            size = "" if img_size is None else f" at {img_size} pixels"
            raise UserError(f"backbone {name!r}{size} is too large for this machine's memory.") from error
        if not pretrained:
            raise
        raise UserError(
            f"the weights of {name!r} could not be had ({type(error).__name__}: {str(error).splitlines()[0]}): "
            "pass a checkpoint with --weights FILE, or --weights random for a dry run."
        ) from error


def hollow(name: str, *, img_size: int | None) -> nn.Module:
    """Build the trunk of a resolved name with no memory for its weights, where it computes none of its buffers.

    Raises:
        UserError: as of :func:`build`.
    """
    with torch.device("meta"):
        model = build(name, img_size=img_size, pretrained=False)
    stored = model.state_dict()
    computed = any(key not in stored for key, _ in model.named_buffers())
    return build(name, img_size=img_size, pretrained=False) if computed else model

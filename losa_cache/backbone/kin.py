"""Which architecture a checkpoint is of, where its tensors say so plainly."""

import re
from collections.abc import Mapping

import timm
import torch

SIZES = {  # (width, depth) to the word in timm's names
    (192, 12): "tiny",
    (384, 12): "small",
    (512, 12): "medium",
    (768, 12): "base",
    (1024, 24): "large",
    (1152, 27): "so400m",
    (1280, 32): "huge",
    (1408, 40): "giant",
    (1536, 40): "giant",
    (1664, 48): "gigantic",
}
FAMILIES = ("vit_", "deit", "beit", "eva", "flexivit")
PATCHES, POSITIONS = "patch_embed.proj.weight", "pos_embed"
_BLOCK = re.compile(r"blocks\.(\d+)\.")

_PARTS = {  # of a name, to what a model has that has such a tensor
    "ls1.gamma": "LayerScale",
    "gamma_1": "LayerScale",
    "q_norm": "norms of queries and keys",
    "reg_token": "register tokens",
    "dist_token": "a distillation token",
    "norm_pre": "a norm before its blocks",
    "fc_norm": "a norm after its pooling",
    "rel_pos": "relative positions",
    "mlp.fc1_g": "a gated MLP",
}

Shapes = Mapping[str, tuple[int, ...]]


def describe(shapes: Shapes) -> str:
    """Say how many blocks of how many channels there are, and what more than in a plain ViT; nothing if unseen."""
    depth, width = _measure(shapes)
    parts = dict.fromkeys(word for part, word in _PARTS.items() if any(part in name for name in shapes))
    text = f"{depth} blocks of {width} channels" if depth and width else ""
    return f"{text} with {' and '.join(parts)}" if text and parts else text


def nearest_architecture(shapes: Shapes) -> str:
    """Name a timm model that has the very tensors of a trunk, or give an empty string.

    Args:
        shapes: of the trunk's tensors, by timm's names, without heads.
    """
    depth, width = _measure(shapes)
    size = SIZES.get((width, depth))
    if size is None or len(shapes.get(PATCHES, ())) != 4:
        return ""
    patch = shapes[PATCHES][-1]
    names = [name for name in timm.list_models() if name.startswith(FAMILIES) and f"_{size}_" in name]
    names = [name for name in names if f"patch{patch}" in name or "patch" not in name]
    first, whole, resized = _first_block(shapes), _without_positions(shapes), ""
    for name in sorted(names, key=len):  # the plain names are the short ones
        if _shapes_of(name, depth=1) != first:  # which is made in a fraction of the time
            continue
        theirs = _shapes_of(name)
        if _without_positions(theirs) == whole:
            if theirs.get(POSITIONS) == shapes.get(POSITIONS):
                return name
            resized = resized or name  # of another input size
    return resized


def _shapes_of(name: str, **options: int) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0, **options)
    except Exception:  # of a kind whose blocks are told one by one, or whose tensors are computed when it is built
        return {}
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    return _without_positions(shapes) if options else shapes


def _first_block(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {
        name: shape
        for name, shape in _without_positions(shapes).items()
        if (found := _BLOCK.match(name)) is None or found[1] == "0"
    }


def _without_positions(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if name != POSITIONS}


def _measure(shapes: Shapes) -> tuple[int, int]:
    numbers = {int(found[1]) for name in shapes if (found := _BLOCK.match(name))}
    norm = shapes.get("blocks.0.norm1.weight", ())
    return (max(numbers) + 1 if numbers else 0), (norm[0] if len(norm) == 1 else 0)

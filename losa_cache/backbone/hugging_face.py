"""ViViT checkpoints in Hugging Face's format: a folder with config.json and safetensors, as transformers saves them.

They are read without that library, into timm's trunk with a tubelet embedding. A folder downloaded from the hub, as
google/vivit-b-16x2-kinetics400, is one; nothing is downloaded here.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from losa_cache.backbone.vivit import STRIDE, inflate
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError

DEFAULTS: dict[str, Any] = {  # of transformers' VivitConfig, for what a config.json leaves out
    "image_size": 224,
    "num_frames": 32,
    "tubelet_size": [2, 16, 16],
    "num_channels": 3,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu_fast",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
}
PROCESSOR: dict[str, Any] = {  # of its VivitImageProcessor
    "rescale_factor": 1 / 127.5,
    "offset": True,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 2,
    "size": {"shortest_edge": 256},
}
RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""
TANH = partial(nn.GELU, approximate="tanh")
ACTIVATIONS = {"gelu": nn.GELU, "gelu_fast": TANH, "gelu_new": TANH, "gelu_pytorch_tanh": TANH}
"""By transformers' names."""
OF_BLOCK = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
"""Modules of a block, theirs and timm's."""


def open_folder(folder: Path) -> tuple[nn.Module, str, InputSpec]:
    """Read a checkpoint.

    Returns:
        the model; a name that says what its tensors do not (heads, activation, epsilon); and what it wants of a video.

    Raises:
        UserError: if the folder holds no ViViT, or one that does not fit its own config.
    """
    config = _read_config(folder)
    spec = _read_input(folder, config)
    tubelet, *patch = config["tubelet_size"]
    depth, width, heads = config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]
    activation, eps = config["hidden_act"], config["layer_norm_eps"]
    if activation not in ACTIVATIONS:
        raise UserError(
            f"checkpoint {str(folder)!r} uses the activation {activation!r}, which losa-cache does not know."
        )
    model = VisionTransformer(
        img_size=spec.size[1:],
        patch_size=tuple(patch),
        in_chans=spec.size[0],
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=(config["intermediate_size"] + 0.5) / width,  # timm rounds the product down
        qkv_bias=config["qkv_bias"],
        norm_layer=partial(nn.LayerNorm, eps=eps),
        act_layer=ACTIVATIONS[activation],
        num_classes=0,
    )
    name = f"vivit_{depth}x{width}_{heads}heads_{activation}_{eps:g}"
    inflate(model, name=name, frames=spec.frames, tubelet=tubelet)
    try:
        model.load_state_dict(convert(_read_tensors(folder), depth))
    except (RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"the tensors in {str(folder)!r} do not fit its config.json ({first}).") from error
    return model, name, spec


def convert(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Rename transformers' tensors to timm's, with query, key and value as one; leave out pooler and classifier."""
    theirs = {name.removeprefix("vivit."): tensor for name, tensor in theirs.items()}
    kernel = theirs["embeddings.patch_embeddings.projection.weight"]  # (width, channels, t, p, p)
    ours = {
        "cls_token": theirs["embeddings.cls_token"],
        "pos_embed": theirs["embeddings.position_embeddings"],
        "patch_embed.weight": kernel.transpose(1, 2).flatten(1, 2),
        "patch_embed.bias": theirs["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": theirs["layernorm.weight"],
        "norm.bias": theirs["layernorm.bias"],
    }
    for number in range(depth):
        block = f"encoder.layer.{number}."
        for part in ("weight", "bias"):
            names = [f"{block}attention.attention.{which}.{part}" for which in ("query", "key", "value")]
            if part == "weight" or names[0] in theirs:  # qkv_bias
                ours[f"blocks.{number}.attn.qkv.{part}"] = torch.cat([theirs[name] for name in names])
            for source, target in OF_BLOCK.items():
                ours[f"blocks.{number}.{target}.{part}"] = theirs[f"{block}{source}.{part}"]
    return ours


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(path.parent)!r} is no checkpoint folder in Hugging Face's format ({path.name}: {error})."
        ) from error
    return content


def _read_config(folder: Path) -> dict[str, Any]:
    config = _read_json(folder / "config.json")
    if config.get("model_type") != "vivit":
        raise UserError(
            f"checkpoint {str(folder)!r} is a {config.get('model_type')!r} model: only 'vivit' can be read."
        )
    return DEFAULTS | config


def _read_input(folder: Path, config: dict[str, Any]) -> InputSpec:
    """Say what the model wants of a video: what preprocessor_config.json says, in timm's terms.

    Without that file as ViViT was trained: the middle of the frame, at 7 / 8 of its shorter edge, in -1 ... 1.
    """
    side, channels, path = config["image_size"], config["num_channels"], folder / "preprocessor_config.json"
    height, width = (side, side) if isinstance(side, int) else side
    as_trained: dict[str, Any] = {"do_normalize": False, "size": {"shortest_edge": height / 0.875}}
    told = PROCESSOR | (_read_json(path) if path.is_file() else as_trained)
    means, stds = (told["image_mean"], told["image_std"]) if told["do_normalize"] else ([0] * channels, [1] * channels)
    # theirs is ((factor * byte - offset) - mean) / std, ours (byte / 255 - mean) / std
    factor, offset = 255 * told["rescale_factor"], float(told["offset"])
    shortest = told["size"].get("shortest_edge")  # else both edges are told, and the frame is squeezed
    return InputSpec(
        size=(channels, height, width),
        mean=tuple((offset + mean) / factor for mean in means),
        std=tuple(std / factor for std in stds),
        interpolation=RESAMPLE.get(told["resample"], "bilinear"),
        crop_pct=height / shortest if shortest else 1.0,
        crop_mode="center" if shortest else "squash",
        frames=config["num_frames"],
        stride=STRIDE,
    )


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read model.safetensors, or its parts. Pickled checkpoints are never opened."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UserError(f"there is no model.safetensors in {str(folder)!r}: save the checkpoint in that form.")
    try:
        return {name: tensor.float() for file in files for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"the checkpoint in {str(folder)!r} cannot be read ({error}).") from error

"""ViViT checkpoints in Hugging Face's format: a folder with config.json and safetensors, as transformers saves them.

They are read without that library, into timm's trunk with a tubelet embedding. A folder downloaded from the hub, as
google/vivit-b-16x2-kinetics400, is one; nothing is downloaded here.
"""

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from losa_cache.backbone.checkpoint import read
from losa_cache.backbone.foreign import Form
from losa_cache.backbone.vivit import STRIDE, inflate
from losa_cache.backbone.weights import misfit, require_sound
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, read_json

Shape = TypeVar("Shape")
Count = Annotated[int, msgspec.Meta(ge=1, le=65_536)]
Pixels = Annotated[int, msgspec.Meta(ge=1, le=8192)]
Number = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]


class Config(msgspec.Struct):
    """config.json: what of it makes the model, within bounds, and transformers' own defaults (VivitConfig)."""

    image_size: Pixels | Annotated[list[Pixels], msgspec.Meta(min_length=2, max_length=2)] = 224
    num_frames: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 32
    tubelet_size: tuple[Count, Count, Count] = (2, 16, 16)
    num_channels: Annotated[int, msgspec.Meta(ge=1, le=64)] = 3
    hidden_size: Count = 768
    num_hidden_layers: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 12
    num_attention_heads: Count = 12
    intermediate_size: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 3072
    hidden_act: str = "gelu_fast"
    layer_norm_eps: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-6
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        """Hold what belongs together to one another."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not divide {self.hidden_size} channels")
        if any(edge < patch for edge, patch in zip(self.size, self.tubelet_size[1:], strict=True)):
            raise ValueError(f"an image of {self.size} pixels holds no patch of {self.tubelet_size[1:]}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        height, width = (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size
        return height, width


class Edges(msgspec.Struct):
    """A size: of the shorter edge, or of both."""

    shortest_edge: Count | None = None
    height: Count | None = None
    width: Count | None = None


class Processor(msgspec.Struct):
    """preprocessor_config.json, with the defaults of VivitImageProcessor."""

    rescale_factor: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = 1 / 127.5
    offset: bool = True
    do_normalize: bool = True
    do_resize: bool = True
    do_rescale: bool = True
    image_mean: tuple[Number, ...] = (0.5,) * 3
    image_std: tuple[Annotated[float, msgspec.Meta(gt=0, le=1e6)], ...] = (0.5,) * 3
    resample: int = 2
    size: Edges = msgspec.field(default_factory=lambda: Edges(shortest_edge=256))


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
    tubelet, *patch = config.tubelet_size
    depth, width, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
    activation, eps = config.hidden_act, config.layer_norm_eps
    if activation not in ACTIVATIONS:
        raise UserError(
            f"checkpoint {str(folder)!r} uses the activation {activation!r}, which losa-cache does not know."
        )
    with torch.device("meta"):  # a config may tell any size: memory is what its tensors take
        model = VisionTransformer(
            img_size=spec.size[1:],
            patch_size=tuple(patch),
            in_chans=spec.size[0],
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=(config.intermediate_size + 0.5) / width,  # timm rounds the product down
            qkv_bias=config.qkv_bias,
            norm_layer=partial(nn.LayerNorm, eps=eps),
            act_layer=ACTIVATIONS[activation],
            num_classes=0,
        )
        name = f"vivit_{depth}x{width}_{heads}heads_{activation}_{eps:g}"
        inflate(model, name=name, frames=spec.frames, tubelet=tubelet)
    tensors = _read_tensors(folder)
    try:
        converted = convert(tensors, depth)
    except (LookupError, RuntimeError) as error:
        raise UserError(f"the tensors in {str(folder)!r} do not fit its config.json ({error}).") from error
    if reason := misfit(converted, model.state_dict()):
        raise UserError(f"the tensors in {str(folder)!r} do not fit its config.json ({reason}).")
    model.load_state_dict({key: tensor.float() for key, tensor in converted.items()}, assign=True)
    require_sound(model, f"checkpoint {str(folder)!r}")
    return model, name, spec


def convert(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Rename transformers' tensors to timm's, with query, key and value as one; leave out pooler and classifier.

    Tensors of the trunk that such a model has not keep their names, so that they are noticed.

    Raises:
        KeyError: if one is missing.
    """
    theirs = {name.removeprefix("vivit."): tensor for name, tensor in theirs.items()}
    kernel = theirs.pop("embeddings.patch_embeddings.projection.weight")  # (width, channels, t, p, p)
    ours = {
        "cls_token": theirs.pop("embeddings.cls_token"),
        "pos_embed": theirs.pop("embeddings.position_embeddings"),
        "patch_embed.weight": kernel.transpose(1, 2).flatten(1, 2),
        "patch_embed.bias": theirs.pop("embeddings.patch_embeddings.projection.bias"),
        "norm.weight": theirs.pop("layernorm.weight"),
        "norm.bias": theirs.pop("layernorm.bias"),
    }
    for number in range(depth):
        block = f"encoder.layer.{number}."
        for part in ("weight", "bias"):
            names = [f"{block}attention.attention.{which}.{part}" for which in ("query", "key", "value")]
            if part == "weight" or names[0] in theirs:  # qkv_bias
                ours[f"blocks.{number}.attn.qkv.{part}"] = torch.cat([theirs.pop(name) for name in names])
            for source, target in OF_BLOCK.items():
                ours[f"blocks.{number}.{target}.{part}"] = theirs.pop(f"{block}{source}.{part}")
    return ours | {name: tensor for name, tensor in theirs.items() if name.startswith(("encoder.", "embeddings."))}


def _read(path: Path, shape: type[Shape]) -> Shape:
    """Read a JSON object and hold it to a shape; fields that it does not know are for others.

    Raises:
        UserError: if there is none, or it is of another shape.
    """
    try:
        return read_json(path, shape)
    except UnreadableError as error:
        raise UserError(
            f"{str(path.parent)!r} is no checkpoint folder in Hugging Face's format ({path.name}: {error})."
        ) from error


def _read_config(folder: Path) -> Config:
    kind = _read(folder / "config.json", dict[str, Any]).get("model_type")
    if kind != "vivit":
        raise UserError(f"checkpoint {str(folder)!r} is a {kind!r} model: only 'vivit' can be read.")
    return _read(folder / "config.json", Config)


def _read_input(folder: Path, config: Config) -> InputSpec:
    """Say what the model wants of a video: what preprocessor_config.json says, in timm's terms.

    Without that file as ViViT was trained: the middle of the frame, at 7 / 8 of its shorter edge, in -1 ... 1.
    """
    (height, width), channels, path = config.size, config.num_channels, folder / "preprocessor_config.json"
    if os.path.lexists(path):
        told = _read(path, Processor)
        shortest: float | None = told.size.shortest_edge
    else:
        told, shortest = Processor(do_normalize=False), height / 0.875
    means, stds = (told.image_mean, told.image_std) if told.do_normalize else ((0.0,) * channels, (1.0,) * channels)
    if not (told.do_resize and told.do_rescale and told.resample in RESAMPLE and len(means) == len(stds) == channels):
        raise UserError(
            f"{str(path)!r} asks for frames that losa-cache does not prepare: it resizes (resample: "
            f"{', '.join(map(str, RESAMPLE))}), rescales and normalises all {channels} channels."
        )
    # theirs is ((factor * byte - offset) - mean) / std, ours (byte / 255 - mean) / std
    factor, offset = 255 * told.rescale_factor, float(told.offset)
    return InputSpec(
        size=(channels, height, width),
        mean=tuple((offset + mean) / factor for mean in means),
        std=tuple(std / factor for std in stds),
        interpolation=RESAMPLE[told.resample],
        crop_pct=height / shortest if shortest else 1.0,
        crop_mode="center" if shortest else "squash",  # where both edges are told, the frame is squeezed
        frames=config.num_frames,
        stride=STRIDE,
    )


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read model.safetensors, or its parts. Pickled checkpoints are never opened."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UserError(f"there is no model.safetensors in {str(folder)!r}: save the checkpoint in that form.")
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            part = read(file, only=Form.SAFETENSORS)
        except UserError as error:
            raise UserError(f"the checkpoint in {str(folder)!r} cannot be read: {error}") from error
        if twice := sorted(found.keys() & part.keys()):
            raise UserError(f"two files in {str(folder)!r} hold {twice[0]!r}: leave one of {len(files)} out.")
        found |= part
    return found

"""ViViT out of an image ViT: tubelets for patches, positions repeated over time, everything else as it is.

This is the unfactorised model of Arnab et al., "ViViT: A Video Vision Transformer" (ICCV 2021, model 1), with the
weights of an image model (its section 3.4): the video backbone of the LoSA paper. How prefix tokens other than CLS go
along is *not from the paper*.
"""

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.errors import UserError

TUBELET, FRAMES, STRIDE = 2, 32, 2  # the paper's: 32 frames, every other one, in pairs
CENTRAL, AVERAGED = "central", "averaged"
INFLATIONS = (CENTRAL, AVERAGED)


class TubeletEmbed(nn.Module):
    """Embed tubelets: ``(batch, frames, channels, height, width)`` to ``(batch, tokens, width)``, time slowest.

    The frames of a tubelet lie side by side as channels: it is a patch of an image of t x channels. A clip may also
    come so as a whole, ``(batch, frames x channels, height, width)``, since timm's trunks ask for four axes.

    Attributes:
        grid: (n_t, rows, columns).
        weight: ``(width, t x channels, p, p)``.
    """

    def __init__(self, image: PatchEmbed, *, frames: int, tubelet: int, inflation: str) -> None:
        super().__init__()
        self.grid: tuple[int, ...] = (frames // tubelet, *image.grid_size)
        self.patch_size: tuple[int, int] = image.patch_size
        self.weight = nn.Parameter(inflate_kernel(image.proj.weight, tubelet, inflation))
        self.bias: nn.Parameter | None = image.proj.bias
        self.norm: nn.Module = image.norm

    def forward(self, clips: Tensor) -> Tensor:
        """Embed every tubelet on its own."""
        batch = clips.shape[0]  # not len(): exporters would take it for a constant
        tubelets = clips.reshape(batch * self.grid[0], -1, *clips.shape[-2:])
        maps = F.conv2d(tubelets, self.weight, self.bias, stride=self.patch_size)
        return self.norm(maps.flatten(2).mT.reshape(batch, -1, len(self.weight)))

    def dynamic_feat_size(self, _: tuple[int, int]) -> tuple[int, int]:
        """Tell timm the shape of all tokens as one map, the time steps below one another."""
        times, rows, columns = self.grid
        return times * rows, columns


def inflate_kernel(kernel: Tensor, tubelet: int, inflation: str) -> Tensor:
    """Inflate ``(width, channels, p, p)`` to ``(width, t x channels, p, p)``, so that a static tubelet gives the same.

    Args:
        inflation: ``"central"``: the image's kernel for frame t // 2, zeros elsewhere; ``"averaged"``: a t-th for each.
    """
    if inflation == AVERAGED:
        return (kernel.detach() / tubelet).repeat(1, tubelet, 1, 1)
    inflated = kernel.new_zeros(len(kernel), tubelet, *kernel.shape[1:])
    inflated[:, tubelet // 2] = kernel.detach()
    return inflated.flatten(1, 2)


def inflate(
    trunk: nn.Module, *, name: str, frames: int = FRAMES, tubelet: int = TUBELET, inflation: str = CENTRAL
) -> None:
    """Turn an image ViT into a video model, in place.

    Two of its tensors change, the patch kernel and the position embedding; all the others stay the very same. Tokens
    are the prefix, once, with its own positions, then time x rows x columns. Both new tensors are in the state dict, so
    the weights' hash tells one inflation, tubelet or number of frames from another.

    Args:
        trunk: timm's.
        name: of the trunk, for errors.
        frames: of a clip, a multiple of ``tubelet``.
        tubelet: frames a token sees.
        inflation: of the kernel, see :func:`inflate_kernel`.

    Raises:
        UserError: for a trunk without learned absolute positions or with another patch embedding, and for options
            that cannot work.
    """
    if inflation not in INFLATIONS:
        raise UserError(f"unknown inflation {inflation!r}: choose one of {', '.join(INFLATIONS)}.")
    if frames < tubelet or frames % tubelet:
        raise UserError(f"frames is {frames}: a token sees {tubelet} of them, so it must be a multiple of {tubelet}.")
    obstacle = _obstacle(trunk)
    if obstacle:
        raise UserError(
            f"backbone {name!r} {obstacle}, so no video model can be made of it: "
            "choose a ViT with learned absolute positions and a fixed input size."
        )
    assert isinstance(trunk, VisionTransformer)
    embed = TubeletEmbed(trunk.patch_embed, frames=frames, tubelet=tubelet, inflation=inflation)
    first = 0 if trunk.no_embed_class else trunk.num_prefix_tokens  # positions of the prefix, where it has any
    prefix, patches = trunk.pos_embed.detach().tensor_split([first], dim=1)
    trunk.pos_embed = nn.Parameter(torch.cat((prefix, patches.repeat(1, embed.grid[0], 1)), dim=1))
    trunk.patch_embed = embed


def _obstacle(trunk: nn.Module) -> str:
    """Say what about a trunk does not go over to video, or nothing."""
    if not isinstance(trunk, VisionTransformer):  # EVA-02, DINOv3, BEiT, ... are classes of their own
        return "is no plain ViT: its positions may be rotary or relative, which do not say how time goes on"
    if trunk.pos_embed is None:
        return "has no position embedding to repeat over time"
    if trunk.dynamic_img_size or getattr(trunk.patch_embed, "dynamic_img_pad", False):
        return "takes images of any size"
    if type(trunk.patch_embed) is not PatchEmbed:
        return f"embeds its patches by a {type(trunk.patch_embed).__name__}"
    return ""

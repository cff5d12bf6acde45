"""Branches and embedding against the trunk's own parts, over the kinds of trunk that people use."""

import pytest
import torch
from timm.models.vision_transformer import Block, ParallelScalingBlock, ResPostBlock
from torch.nn import functional as F

from losa_cache.errors import UserError
from losa_cache.points import stored_points
from tests.backbone.test_model import TRUNKS, shrink
from tests.conftest import tiny_backbone


def images_of(backbone):
    return backbone.input.normalise(torch.randint(0, 256, (3, *backbone.input.size), dtype=torch.uint8))


@torch.inference_mode()
@pytest.mark.parametrize("name", TRUNKS)
def test_a_block_adds_its_attention_then_its_mlp(name):
    backbone = shrink(name)
    backbone.require_branches()
    images = images_of(backbone)
    names = [*stored_points("both", [1, 2, 3], embedding=True), "block.1", "block.2"]
    at = dict(zip(names, backbone.outputs(images, names, compute=torch.float32), strict=True))
    before = at["embedding"]
    for number, block in enumerate(backbone.model.blocks, start=1):
        attention, mlp, after = at[f"attention.{number}"], at[f"mlp.{number}"], at[f"block.{number}"]
        torch.testing.assert_close(before + attention + mlp, after)
        scale = block.ls2.gamma if hasattr(getattr(block, "ls2", None), "gamma") else getattr(block, "gamma_2", None)
        again = block.mlp(block.norm2(before + attention)) * (1 if scale is None else scale)
        torch.testing.assert_close(mlp, again)  # and so attention is the other summand
        assert attention.abs().mean() > 1e-3
        before = after


@torch.inference_mode()
@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224",
        "vit_base_patch16_clip_224",  # norm before the blocks
        "eva02_tiny_patch14_224",
        "vit_small_patch16_dinov3",  # registers, no position embedding
        "beit_base_patch16_224",
    ],
)
def test_the_embedding_is_prefix_and_patches_with_their_positions(name):
    backbone = shrink(name)
    model, images = backbone.model, images_of(backbone)
    kernel = model.patch_embed.proj
    patches = F.unfold(images, kernel.kernel_size, stride=kernel.stride).transpose(1, 2)
    patches = patches @ kernel.weight.flatten(1).T + (0 if kernel.bias is None else kernel.bias)
    prefix = [model.cls_token, getattr(model, "reg_token", None)]
    expected = torch.cat([*(token.expand(3, -1, -1) for token in prefix if token is not None), patches], dim=1)
    if model.pos_embed is not None:
        expected = expected + model.pos_embed
    if "clip" in name:
        expected = F.layer_norm(expected, (48,), model.norm_pre.weight, model.norm_pre.bias, model.norm_pre.eps)
    (embedding,) = backbone.outputs(images, ["embedding"], compute=torch.float32)
    torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-4)


def test_points_come_in_the_order_asked_for_and_no_hook_stays():
    backbone = tiny_backbone()
    images = images_of(backbone)
    names = ["block.4", "mlp.2", "embedding", "attention.2"]
    some = backbone.outputs(images, names, compute=torch.float32)
    for name, value in zip(names, some, strict=True):
        assert torch.equal(value, backbone.outputs(images, [name], compute=torch.float32)[0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.model.modules())


class PostNorm(Block):
    def forward(self, x, **_):
        x = self.norm1(x + self.drop_path1(self.attn(x)))
        return self.norm2(x + self.drop_path2(self.mlp(x)))


def test_trunks_without_branches_of_their_own_are_refused_but_their_blocks_are_not():
    for block, message in (
        (ParallelScalingBlock, "a ParallelScalingBlock has no attention branch of its own"),
        (PostNorm, r"block\.1 of backbone 'tiny0' is not its input plus an attention and an MLP output"),
    ):
        backbone = tiny_backbone(block_fn=block)
        with pytest.raises(UserError, match=message):
            backbone.require_branches()
        assert len(backbone.outputs(images_of(backbone), ["embedding", "block.4"], compute=torch.float32)) == 2
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.model.modules())


def test_a_norm_inside_the_branch_is_part_of_it():
    backbone = tiny_backbone(block_fn=ResPostBlock)
    backbone.require_branches()

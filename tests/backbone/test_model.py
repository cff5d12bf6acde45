"""Block outputs and frozen tails against timm itself, over the kinds of trunk that people use."""

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

from losa_cache.backbone import Backbone, load_backbone
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError
from losa_cache.points import tapped_points

# timm names, shrunk by keyword: the architecture's own code runs, on a few thousand parameters
SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 32, "num_classes": 0}
TRUNKS = {
    "vit_base_patch16_224": (5, 1, "token"),  # AugReg, CLS
    "vit_base_patch16_rope_reg1_gap_256": (5, 1, "avg"),
    "vit_small_patch14_reg4_dinov2": (9, 5, "token"),  # registers
    "vit_base_patch16_clip_224": (5, 1, "token"),  # norm before the blocks
    "vit_base_patch16_siglip_224": (4, 0, "map"),  # attention pool
    "vit_base_patch16_siglip_gap_224": (4, 0, "avg"),
    "deit_base_distilled_patch16_224": (6, 2, "token"),  # two class tokens
    "eva02_tiny_patch14_224": (5, 1, "avg"),
    "vit_small_patch16_dinov3": (9, 5, "avg"),
    "vit_pe_core_base_patch16_224": (5, 1, "map"),
    "beit_base_patch16_224": (5, 1, "avg"),
}


def shrink(name: str) -> Backbone:
    size = 28 if "patch14" in name else 32
    torch.manual_seed(0)
    model = timm.create_model(name, **(SMALL | {"img_size": size}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    config = resolve_model_data_config(model) | {"input_size": (3, size, size)}
    return Backbone(model, name=name, random=True, input=InputSpec.from_timm(config))


@pytest.mark.parametrize("name", TRUNKS)
def test_blocks_and_tail_are_those_of_timm(name):
    backbone = shrink(name)
    tokens, prefix, pool = TRUNKS[name]
    assert (backbone.tokens, backbone.prefix_tokens, backbone.grid) == (tokens, prefix, (2, 2))
    assert backbone.tail.config["pool"] == pool
    pixels = torch.randint(0, 256, (3, *backbone.input.size), dtype=torch.uint8)
    with torch.inference_mode():
        images = backbone.input.normalise(pixels)
        features = backbone.model(images)
        # timm's public way, which gives patches and prefix tokens apart
        seen = backbone.model.forward_intermediates(
            images, return_prefix_tokens=True, norm=False, output_fmt="NLC", intermediates_only=True
        )
    outputs = backbone.outputs(pixels, tapped_points("block", [1, 2, 3]), compute=torch.float32)
    for ours, theirs in zip(outputs, seen, strict=True):
        patches, before = theirs if prefix else (theirs, theirs[:, :0])
        torch.testing.assert_close(ours, torch.cat((before, patches), 1), rtol=0, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.tail(outputs[-1]), features, rtol=1e-5, atol=1e-5)


def test_layers_are_block_numbers_from_1():
    backbone = shrink("vit_base_patch16_224")
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    everything = backbone.outputs(pixels, tapped_points("block", [1, 2, 3]), compute=torch.float32)
    some = backbone.outputs(pixels, tapped_points("block", [1, 3]), compute=torch.float32)
    assert [torch.equal(a, b) for a, b in zip(some, [everything[0], everything[2]], strict=True)] == [True, True]


def test_nothing_in_the_backbone_is_trained_or_drops_out():
    backbone = shrink("vit_base_patch16_224")
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "hiera_tiny_224"])
def test_trunks_of_another_kind_are_refused(name):
    with pytest.raises(UserError, match=name):
        load_backbone(name, weights="random")


def test_blocks_that_pass_on_more_than_their_tokens_are_refused():
    with pytest.raises(UserError, match=r"'tnt_s_legacy_patch16_224' takes .* choose a ViT whose blocks pass on one"):
        load_backbone("tnt_s_legacy_patch16_224", weights="random")


def test_random_weights_are_marked_and_follow_the_seed():
    first, again, other = (load_backbone("vit_digits", weights="random", seed=s).weights for s in (0, 0, 1))
    assert first.startswith("random:sha256:")
    assert first == again != other


def test_img_size_changes_the_input_and_the_tokens():
    backbone = load_backbone("vit_digits", img_size=32)
    assert backbone.input.size == (3, 32, 32)
    assert backbone.grid == (16, 16)
    assert backbone.tokens == 257

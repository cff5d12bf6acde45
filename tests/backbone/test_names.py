"""Names, and the trunks that timm does not have."""

import pytest
import timm
import torch

from losa_cache.backbone.names import SHORT_NAMES, full_name, vit_e
from losa_cache.errors import UserError


@pytest.mark.parametrize(
    ("short", "depth", "width"),
    [
        pytest.param("vit_s", 12, 384, marks=pytest.mark.slow),
        ("vit_b", 12, 768),
        pytest.param("vit_l", 24, 1024, marks=pytest.mark.slow),
        ("vit_h", 32, 1280),
        ("vit_g", 40, 1408),
        pytest.param("vit_G", 48, 1664, marks=pytest.mark.slow),
    ],
)
def test_short_names_are_the_papers_shapes(short, depth, width):
    with torch.device("meta"):
        model = timm.create_model(full_name(short), num_classes=0)
    assert (len(model.blocks), model.embed_dim) == (depth, width)


def test_every_short_name_has_public_weights():
    assert set(SHORT_NAMES.values()) <= set(timm.list_pretrained())


def test_vit_e_is_the_papers_four_billion():
    with torch.device("meta"):
        model = vit_e()
    assert (len(model.blocks), model.embed_dim, model.blocks[0].mlp.fc1.out_features) == (56, 1792, 15360)
    assert (model.blocks[0].attn.num_heads, model.patch_embed.grid_size) == (16, (16, 16))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(3.9, abs=0.1)


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown backbone 'vit_bb'; nearest: .*vit_b\b"):
        full_name("vit_bb")


def test_unknown_tags_come_with_the_known():
    with pytest.raises(UserError, match="orig_in21k"):
        full_name("vit_base_patch16_224.nonsense")


def test_vit_e_has_no_weights_to_download():
    from losa_cache.backbone import load_backbone

    with pytest.raises(UserError, match="--weights"):
        load_backbone("vit_e")

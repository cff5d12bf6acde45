"""Multiply-accumulates as they are counted, against the paper's, timm's and those of the formulas."""

from dataclasses import asdict

import pytest
import timm
import torch
from torch import nn

from losa_cache.backbone import load_backbone
from losa_cache.machine.macs import count_macs
from losa_cache.points import ALL_LAYERS, CONV, LAST
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.dense import DenseAdapter
from losa_cache.sidenet.spec import SIDES
from losa_cache.sidenet.tail import FrozenTail
from losa_cache.train.costs import adapter_macs, backbone_macs, backbone_macs_of
from losa_cache.tuned.insert import insert_method
from losa_cache.tuned.spec import Method
from tests.conftest import tiny_backbone

NORM = {"type": "layernorm", "eps": 1e-6, "affine": True, "bias": True}


def tail_of(width, prefix=1, pool="token"):
    config = {"width": width, "prefix_tokens": prefix, "pool": pool, "class_tokens": prefix, "pool_prefix": False}
    return FrozenTail(config | {"norm": NORM, "fc_norm": {"type": "identity"}})


@pytest.mark.parametrize(("depth", "gmacs"), [(1, 0.046), (2, 0.092), (4, 0.185), (8, 0.369), (40, 1.845)])
def test_losa_beside_vit_g_costs_what_table_5_says(depth, gmacs):
    """Table 5, ViT-g, r = 64: +0.1, 0.1, 0.2, 0.4 and 1.9 "GFLOPs"; to three digits 2 r n d a layer."""
    with torch.device("meta"):
        own = Adapter(
            side="losa", depth=depth, tokens=256, width=1408, rank=64, classes=10, tail=tail_of(1408, 0, "avg")
        )
    own = own.to_empty(device="cpu")
    found = adapter_macs(own, depth) - 1408 * 10
    assert found == 2 * depth * 64 * 256 * 1408
    assert round(found / 1e9, 3) == gmacs


def test_vit_b_costs_what_timm_publishes():
    """17.58 G in timm's tables, of which 0.019 G are norms and 0.001 G the classifier of ImageNet."""
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=1000).eval()
    found = count_macs(lambda: model(torch.empty(1, 3, 224, 224, device="meta")))
    linear, attention, patches, head = 197 * 12 * 768**2, 2 * 197**2 * 768, 196 * 768**2, 768 * 1000
    assert found == 12 * (linear + attention) + patches + head
    assert found / 1e9 == pytest.approx(17.58, abs=0.02)


def test_a_backbone_counts_the_same_loaded_and_by_its_name():
    fields = {"backbone": {"name": "vit_digits"}, "input": {"size": [3, 16, 16], "frames": 1, "stride": 1}}
    found = backbone_macs_of(fields)
    assert found == 8 * (65 * 12 * 96**2 + 2 * 65**2 * 96) + 64 * 12 * 96
    backbone = tiny_backbone()
    blocks, width, tokens = backbone.depth, backbone.width, backbone.tokens
    patches = (tokens - backbone.prefix_tokens) * backbone.model.patch_embed.proj.weight.numel()
    assert backbone_macs(backbone) == blocks * (tokens * 12 * width**2 + 2 * tokens**2 * width) + patches
    assert backbone_macs_of({"backbone": {"name": backbone.name}, "input": asdict(backbone.input)}) is None


def test_a_backbone_of_a_billion_parameters_takes_no_memory_to_count():
    fields = {"backbone": {"name": "vit_giant_patch14_clip_224.laion2b"}, "input": {"size": [3, 224, 224]}}
    found = backbone_macs_of(fields)
    tokens, width, hidden = 257, 1408, 6144
    block = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    assert found == 40 * block + 256 * 3 * 14**2 * width
    assert found / 1e9 == pytest.approx(267.2, abs=0.4)  # timm's tables


def test_a_video_counts_all_its_frames():
    fields = {"backbone": {"name": "vivit:vit_digits"}, "input": {"size": [3, 16, 16], "frames": 4, "stride": 1}}
    found, tokens = backbone_macs_of(fields), 2 * 64 + 1
    blocks = 8 * (tokens * 12 * 96**2 + 2 * tokens**2 * 96)
    assert found == blocks + 2 * 64 * 2 * 12 * 96


def test_a_streamed_backbone_counts_the_same():
    streamed = tiny_backbone().to("cpu", budget=10**7)
    assert streamed.streamed is not None
    assert backbone_macs(streamed) == backbone_macs(tiny_backbone())
    assert streamed.streamed is not None


def test_a_convolution_over_time_counts():
    backbone = load_backbone("vivit_digits", weights="random", frames=4)
    changed = insert_method(backbone, Method("st-adapter", rank=5), seed=0)
    assert backbone_macs(changed) - backbone_macs(backbone) == 8 * 2 * 64 * (2 * 96 * 5 + 3 * 5)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("head", [LAST, ALL_LAYERS])
def test_every_side_network_can_be_counted_and_stays_as_it_is(side, head):
    spec = SIDES[side]
    if head == ALL_LAYERS and not spec.start:
        pytest.skip("it has no such classifier")
    depth = 1 if spec.last_layer else 3
    sizes = {"depth": depth, "tokens": 17, "width": 32, "rank": 16, "classes": 5, "head": head, "points": depth}
    own = Adapter(side=side, **sizes, tail=tail_of(32)).eval()
    own.begin(0.1)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    found = adapter_macs(own, depth)
    assert found >= 32 * 5
    macs = getattr(own.side, "macs", None)
    if macs is not None and head == LAST:
        assert found == pytest.approx(
            macs + 32 * 5, rel=0.15 if side == "ladder" else 0
        )  # the ladder's U reads one row
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


def test_a_decoder_is_counted_with_its_convolution():
    dense = {"decoder": CONV, "grid": (4, 4)}
    sizes = {"depth": 2, "tokens": 17, "width": 32, "rank": 4, "classes": 3}
    own = DenseAdapter(side="losa", **sizes, tail=tail_of(32), dense=dense).eval()
    decoder = 16 * (32 * 128 + 9 * 128**2 + (32 + 128) * 3 * 16)
    assert adapter_macs(own, 2) == own.side.macs + decoder


def test_attention_is_two_products_however_torch_computes_it():
    q = torch.randn(1, 2, 10, 8)
    attend = nn.functional.scaled_dot_product_attention
    assert count_macs(lambda: attend(q, q, q)) == 2 * 2 * 10 * 10 * 8
    layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True).eval()
    assert count_macs(lambda: layer(torch.zeros(1, 10, 16))) == 10 * (4 * 16**2 + 2 * 16 * 64) + 2 * 10 * 10 * 16

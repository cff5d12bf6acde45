"""Weights that are rounded once give what autocast gives, bit for bit, and leave the exact ones as they were."""

import timm
import torch

from losa_cache.backbone.rounded import in_place, round_weights, size_of_rounded


def outputs(model, images):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        return model.forward_intermediates(images, norm=False, intermediates_only=True, output_fmt="NLC")


def test_every_block_output_is_the_same_bit_for_bit():
    torch.manual_seed(0)
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0}
    plain = timm.models.VisionTransformer(**options).eval()
    rotary = timm.models.Eva(**options, use_rot_pos_emb=True, qkv_fused=True).eval()  # adds biases by itself
    for model in (plain, rotary):
        images = torch.randn(2, 3, 16, 16)
        exact = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        weights = round_weights(model.blocks, torch.bfloat16)
        wanted = outputs(model, images)
        with in_place(weights):
            assert model.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
            found = outputs(model, images)
        assert all(map(torch.equal, found, wanted))
        after = model.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in exact.items())
        assert after["blocks.0.mlp.fc1.weight"].dtype == torch.float32


def test_the_exact_weights_come_back_after_an_error_and_the_size_is_what_is_copied():
    layer = torch.nn.Linear(4, 3)
    weights = round_weights([layer], torch.bfloat16)
    assert size_of_rounded([layer], torch.bfloat16) == sum(own.rounded.nbytes for own in weights) == 2 * 15
    try:
        with in_place(weights):
            raise RuntimeError
    except RuntimeError:
        pass
    assert layer.weight.dtype == layer.bias.dtype == torch.float32

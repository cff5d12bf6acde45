"""ViViT checkpoints against the library that wrote them."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from losa_cache.backbone import load_backbone
from losa_cache.errors import UserError

SHAPE = {"image_size": 24, "num_frames": 6, "tubelet_size": [2, 8, 8], "num_hidden_layers": 3}
WIDTH = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 80}


def random_vivit(folder, kind="VivitModel", **options):
    import transformers  # two seconds, which only the process that runs these tests needs to spend

    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.VivitConfig(**(SHAPE | WIDTH | options))).eval()
    for parameter in model.parameters():  # theirs starts CLS and positions at zero, which would hide mistakes
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


@torch.inference_mode()
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("VivitModel", {}),
        ("VivitForVideoClassification", {"num_labels": 7}),
        ("VivitModel", {"hidden_act": "gelu", "qkv_bias": False, "layer_norm_eps": 0.1}),
        ("VivitModel", {"tubelet_size": [3, 6, 12], "num_channels": 1}),
    ],
)
def test_block_outputs_and_features_are_those_of_transformers(kind, options, tmp_path):
    theirs = random_vivit(tmp_path, kind, **options)
    ours = load_backbone("vivit", weights=tmp_path)
    pixels = torch.randint(0, 256, (2, *ours.input.shape), dtype=torch.uint8)
    clips = ours.input.normalise(pixels)
    assert clips.amin() == -1
    assert clips.amax() == 1
    expected = getattr(theirs, "vivit", theirs)(clips, output_hidden_states=True)
    points = ["embedding", "block.1", "block.2", "block.3"]
    outputs = ours.outputs(pixels, points, compute=torch.float32)
    for value, hidden in zip(outputs, expected.hidden_states, strict=True):
        assert (value - hidden).norm() < 1e-5 * hidden.norm()
    torch.testing.assert_close(ours.tail(outputs[-1]), expected.last_hidden_state[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_normalize": False},
        {"offset": False, "rescale_factor": 1 / 255, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]},
    ],
)
def test_frames_are_prepared_as_transformers_prepares_them(options, tmp_path):
    from transformers import VivitImageProcessor

    random_vivit(tmp_path)
    theirs = VivitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 24, "width": 24}, **options)
    theirs.save_pretrained(tmp_path)
    ours = load_backbone("vivit", weights=tmp_path).input
    frames = [Image.effect_noise((40, 32), 50 + at).convert("RGB") for at in range(6)]  # so that resizing is none
    expected = theirs(frames, return_tensors="pt")["pixel_values"]
    clip = torch.stack([ours.transform()(frame) for frame in frames])
    torch.testing.assert_close(ours.normalise(clip[None]), expected, rtol=1e-5, atol=1e-5)


def test_the_config_says_what_it_wants_of_a_video(tmp_path):
    random_vivit(tmp_path)
    backbone = load_backbone("vivit", weights=tmp_path, stride=4)
    assert backbone.name == "vivit_3x32_4heads_gelu_fast_1e-06"
    assert (backbone.grid, backbone.tokens, backbone.prefix_tokens) == ((3, 3, 3), 28, 1)
    assert (backbone.input.shape, backbone.input.stride) == ((6, 3, 24, 24), 4)
    backbone.require_branches()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 8}, "frames is 8, but the checkpoint .* is for 6"),
        ({"img_size": 32}, "img-size is 32, but the checkpoint .* is for 24"),
        ({"inflation": "averaged"}, "not made of an image model"),
        ({"weights": "random"}, "--weights FOLDER"),
        ({"weights": "pretrained"}, "--weights FOLDER"),
        ({"weights": "nowhere"}, "'nowhere' is no checkpoint folder"),
    ],
)
def test_options_that_it_cannot_follow_are_refused(options, message, tmp_path):
    random_vivit(tmp_path)
    with pytest.raises(UserError, match=message):
        load_backbone("vivit", **({"weights": tmp_path} | options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "videomae"}, "is a 'videomae' model"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"num_hidden_layers": 4}, r"do not fit its config.json \(.*layer\.3"),
        ({"intermediate_size": 64}, "do not fit its config.json"),
        ({"num_hidden_layers": 2}, r"do not fit its config.json \(the backbone has no encoder\.layer\.2"),
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": 60_000, "num_attention_heads": 4}, "do not fit its config.json"),
        ({"num_attention_heads": 5}, "5 heads do not divide 32 channels"),
        ({"image_size": [24, 24, 24]}, "image_size"),
        ({"image_size": 4}, "holds no patch"),
        ({"tubelet_size": 2}, "tubelet_size"),
    ],
)
def test_a_config_of_another_model_is_refused(change, message, tmp_path):
    random_vivit(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        load_backbone("vivit", weights=tmp_path)


def test_only_safetensors_are_opened(tmp_path):
    random_vivit(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load_backbone("vivit", weights=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone("vivit", weights=tmp_path)


def test_a_checkpoint_in_parts_is_the_same(tmp_path):
    random_vivit(tmp_path)
    whole = load_backbone("vivit", weights=tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for part in (0, 1):
        some = {name: tensors[name] for name in sorted(tensors)[part::2]}
        save_file(some, tmp_path / f"model-{part + 1:05}-of-00002.safetensors")
    assert load_backbone("vivit", weights=tmp_path).weights == whole.weights

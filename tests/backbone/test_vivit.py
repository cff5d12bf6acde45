"""Video models made of image models, against what the image models themselves make of the frames."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from losa_cache.backbone import Backbone, load_backbone
from losa_cache.backbone.names import SHORT_NAMES, build, full_name
from losa_cache.backbone.vivit import INFLATIONS, inflate
from losa_cache.errors import UserError
from losa_cache.points import stored_points
from tests.backbone.test_model import TRUNKS, shrink
from tests.conftest import tiny_backbone

FRAMES, TIMES, PATCHES = 6, 3, 4
PLAIN = [
    "vit_base_patch16_224",
    "vit_small_patch14_reg4_dinov2",  # registers, whose positions the image model leaves out
    "vit_base_patch16_clip_224",  # norm before the blocks, no bias
    "vit_base_patch16_siglip_224",  # no prefix
    "vit_base_patch16_siglip_gap_224",
    "deit_base_distilled_patch16_224",  # two class tokens
]


def pair(image: Backbone, inflation: str = "central") -> tuple[Backbone, Backbone]:
    model = deepcopy(image.model)
    inflate(model, name=image.name, frames=FRAMES, inflation=inflation)
    return image, Backbone(model, name="video", random=True, input=replace(image.input, frames=FRAMES, stride=2))


def clips_of(video: Backbone, batch: int = 2) -> torch.Tensor:
    seeded = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (batch, *video.input.shape), dtype=torch.uint8, generator=seeded)


def embedding(backbone: Backbone, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Prefix and patches of the first block's input."""
    (value,) = backbone.outputs(pixels, ["embedding"], compute=torch.float32)
    return value[:, : backbone.prefix_tokens], value[:, backbone.prefix_tokens :]


@pytest.mark.parametrize("inflation", INFLATIONS)
@pytest.mark.parametrize("name", PLAIN)
def test_a_static_clip_enters_as_its_frame_does_at_every_time_step(name, inflation):
    image, video = pair(shrink(name), inflation)
    tokens, prefix, pool = TRUNKS[name]
    assert (video.prefix_tokens, video.tokens) == (prefix, prefix + TIMES * (tokens - prefix))
    assert (video.grid, video.tail.config["pool"]) == ((TIMES, 2, 2), pool)
    frame = clips_of(video)[:, 0]
    before, patches = embedding(video, frame[:, None].expand(-1, FRAMES, -1, -1, -1))
    image_before, image_patches = embedding(image, frame)
    torch.testing.assert_close(before, image_before)
    # float32 sums of 2 x 588 products, in an order that differs from one kind of CPU to another
    torch.testing.assert_close(patches, image_patches.repeat(1, TIMES, 1), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_a_token_is_its_central_frames_or_the_mean_of_its_frames(name):
    image = shrink(name)
    for inflation in INFLATIONS:
        image, video = pair(image, inflation)
        clips = clips_of(video)
        frames = torch.stack([embedding(image, clips[:, at])[1] for at in range(FRAMES)], dim=1)
        expected = frames[:, 1::2] if inflation == "central" else (frames[:, ::2] + frames[:, 1::2]) / 2
        torch.testing.assert_close(embedding(video, clips)[1], expected.flatten(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at", range(TIMES))
def test_a_pair_of_frames_enters_at_its_time_step_only(at):
    _, video = pair(tiny_backbone(), "averaged")
    clips = clips_of(video)
    other = clips.clone()
    other[:, 2 * at : 2 * at + 2] = 255 - other[:, 2 * at : 2 * at + 2]
    (before, patches), (same, moved) = embedding(video, clips), embedding(video, other)
    changed = (patches - moved).abs().amax(2) > 1e-3
    assert changed.unflatten(1, (TIMES, PATCHES))[:, at].all()
    assert changed.sum() == 2 * PATCHES
    assert torch.equal(before, same)


def test_no_weight_of_the_trunk_is_copied():
    model = tiny_backbone(reg_tokens=2).model
    image = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    inflate(model, name="tiny", frames=FRAMES)
    video = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    of_the_kernel = {"patch_embed.weight", "patch_embed.bias", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert image.keys() ^ video.keys() == of_the_kernel
    assert image["patch_embed.proj.bias"] == video["patch_embed.bias"]
    assert {name for name in image.keys() & video.keys() if image[name] != video[name]} == {"pos_embed"}


def test_points_and_the_frozen_tail_of_a_video():
    backbone = load_backbone("vivit_digits")
    assert (backbone.name, backbone.depth, backbone.width) == ("vivit:vit_digits", 8, 96)
    assert (backbone.input.shape, backbone.input.stride) == ((4, 3, 16, 16), 2)
    assert (backbone.grid, backbone.tokens, backbone.prefix_tokens) == ((2, 8, 8), 129, 1)
    backbone.require_branches()
    clips = clips_of(backbone)
    names = stored_points("both", [1, 8], embedding=True)
    at = dict(zip(names, backbone.outputs(clips, names, compute=torch.float32), strict=True))
    with torch.inference_mode():
        first = backbone.model.blocks[0](at["embedding"])
        torch.testing.assert_close(at["embedding"] + at["attention.1"] + at["mlp.1"], first)
        last = backbone.model.norm(at["block.8"])
        torch.testing.assert_close(backbone.tail(at["block.8"]), last[:, 0])
        torch.testing.assert_close(backbone.model(backbone.input.normalise(clips)), last[:, 0])


def test_pooling_averages_the_patches_of_all_time_steps():
    _, video = pair(tiny_backbone(global_pool="avg"))
    (last,) = video.outputs(clips_of(video), ["block.4"], compute=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(video.tail(last), video.model.fc_norm(last[:, 1:].mean(1)))


def test_a_clip_is_normalised_frame_by_frame():
    spec = replace(tiny_backbone().input, frames=FRAMES, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    clips = torch.randint(0, 256, (2, *spec.shape), dtype=torch.uint8)
    expected = torch.stack([spec.normalise(clips[:, at]) for at in range(FRAMES)], dim=1)
    assert torch.equal(spec.normalise(clips), expected)


@pytest.mark.parametrize("inflation", INFLATIONS)
def test_the_embedded_video_model_sees_a_still_as_the_image_model_does(inflation):
    image, video = load_backbone("vit_digits"), load_backbone("vivit_digits", frames=2, inflation=inflation)
    still = torch.randint(0, 256, (3, *image.input.shape), dtype=torch.uint8)
    points = ["embedding", "block.1", "block.8"]
    expected = image.outputs(still, points, compute=torch.float32)
    found = video.outputs(torch.stack((still, still), dim=1), points, compute=torch.float32)
    for ours, theirs in zip(found, expected, strict=True):  # one time step: the very same tokens all the way up
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_weights_hash_tells_inflations_and_lengths_apart():
    chosen = [{}, {"inflation": "averaged"}, {"frames": 8}]
    hashes = [load_backbone("vivit_digits", **options).weights for options in chosen]
    assert len({load_backbone("vit_digits").weights, *hashes}) == 4
    assert load_backbone("vivit_digits", inflation="central", frames=4).weights == hashes[0]


@pytest.mark.parametrize("short", [*SHORT_NAMES, "vit_e", "vit_digits"])
def test_every_short_name_has_its_video_model(short):
    names = (f"vi{short}", f"vivit:{short}", f"vivit:vi{short}")
    assert {full_name(name) for name in names} == {"vivit:" + full_name(short)}


@pytest.mark.slow
def test_vivit_e_has_4096_tokens():
    with torch.device("meta"):
        model = build("vit_e", img_size=None, pretrained=False)
        inflate(model, name="vit_e")
        clip = torch.empty(1, 32, 3, 224, 224)
        assert model.forward_features(clip).shape == (1, 4096, 1792)
    assert model.patch_embed.grid == (16, 16, 16)
    assert model.patch_embed.weight.shape == (1792, 2 * 3, 14, 14)


@pytest.mark.parametrize(
    ("trunk", "obstacle"),
    [
        (lambda: shrink("eva02_tiny_patch14_224").model, "rotary or relative"),
        (lambda: shrink("vit_small_patch16_dinov3").model, "rotary or relative"),
        (lambda: shrink("beit_base_patch16_224").model, "rotary or relative"),
        (lambda: VisionTransformer(dynamic_img_size=True, depth=1), "images of any size"),
        (lambda: VisionTransformer(pos_embed="none", depth=1), "no position embedding"),
    ],
)
def test_trunks_without_positions_to_repeat_are_refused(trunk, obstacle):
    with pytest.raises(UserError, match=rf"backbone 'it' .*{obstacle}.*choose a ViT with learned absolute positions"):
        inflate(trunk(), name="it")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "vivit:vit_small_r26_s32_224",
            {"weights": "random"},
            "'vit_small_r26_s32_224' embeds its patches by a HybridEmbed",
        ),
        ("vivit:resnet18", {"weights": "random"}, "'resnet18' is no plain ViT"),
        ("vivit_digits", {"frames": 5}, "frames is 5: .* multiple of 2"),
        ("vivit_digits", {"frames": 0}, "frames is 0"),
        ("vivit_digits", {"stride": -1}, "stride is -1"),
        ("vivit_digits", {"inflation": "first"}, "unknown inflation 'first': choose one of central, averaged"),
        ("vit_digits", {"inflation": "averaged"}, "'vit_digits' is not made of an image model"),
        ("vit_digits", {"frames": 4}, "'vit_digits' takes images"),
        ("vit_digits", {"stride": 1}, "'vit_digits' takes images"),
        ("vivit_e", {}, "no weights of 'vivit_e' are public"),
        ("vivit:vivit", {}, "unknown backbone 'vivit'"),
        ("vivit_bb", {}, r"unknown backbone 'vivit_bb'; nearest: .*vivit_b\b"),
    ],
)
def test_what_cannot_work_is_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        load_backbone(name, **options)

"""Each method against its publication: how many parameters, what is computed, where it starts, where gradients go."""

from copy import deepcopy

import pytest
import timm
import torch
from timm.layers import SwiGLU, SwiGLUPacked
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from losa_cache.backbone.vivit import inflate
from losa_cache.data.sources.vtab import TASKS
from losa_cache.errors import UserError
from losa_cache.literals import read_literals
from losa_cache.tuned.spec import FOLDER, METHODS, MethodSpec, load_method, parse_method
from losa_cache.tuned.trunk import Trunk
from tests.methods import by_hand

WIDTH, DEPTH, HEADS, RANK = 16, 2, 2, 3
SIZE, PATCH, GRID = (28, 21), 7, (4, 3)
TINY = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": 0}
TRUNKS = {
    "class token": {},
    "registers, layer scale": {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.5},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "norm first": {"pre_norm": True},
}
HAND = {
    "adapter:houlsby": by_hand.Adapters,
    "adapter:pfeiffer": by_hand.Adapters,
    "adaptformer": by_hand.AdaptFormer,
    "convpass": by_hand.Convpass,
    "ssf": by_hand.SSF,
    "lora": by_hand.LoRA,
    "lora:qkv+mlp": by_hand.LoRA,
    "fact:tt": by_hand.FacT,
    "fact:tk": by_hand.FacT,
    "vpt:shallow": by_hand.ShallowPrompts,
    "vpt:deep": by_hand.DeepPrompts,
}
NEAR_ITSELF = ("adapter", "ssf")
MERGED = ("lora", "lora:proj", "ssf", "fact:tt", "fact:tk")


def method_of(text):
    if text.startswith("lora"):
        pytest.importorskip("peft")
    return parse_method(text)


def scatter(parameters, seed=1):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.3)


def tiny(kind="class token", dtype=torch.float64):
    torch.manual_seed(0)
    model = VisionTransformer(**TINY | TRUNKS[kind]).eval().requires_grad_(False)
    scatter(model.parameters())
    return model.to(dtype)


def video(dtype=torch.float64):
    model = tiny(dtype=dtype)
    inflate(model, name="tiny", frames=6)
    return model.requires_grad_(False)


def insert(text, model, *, rank=RANK, grid=GRID, seed=2):
    method = method_of(text)
    trunk = Trunk("tiny", model, model.embed_dim, model.num_prefix_tokens, grid)
    torch.manual_seed(seed)
    load_method(method.name).insert(trunk, rank=rank, variant=method.variant)
    return model


def changed(text, model, **options):
    """Insert a method, and leave its start."""
    insert(text, model, **options)
    scatter(trained(model).values())
    return model


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def pixels(model, batch=2, frames=1):
    torch.manual_seed(3)
    return torch.randn(batch, 3 * frames, *SIZE, dtype=next(model.parameters()).dtype)


def outputs(model, x):
    """Give the block outputs as the backbone does: from hooks."""
    found, hooks = [], []
    for block in model.blocks:
        hooks.append(block.register_forward_hook(lambda _, __, y: found.append(y)))
    try:
        model.forward_intermediates(
            x, indices=[DEPTH - 1], return_prefix_tokens=True, norm=False, intermediates_only=True, output_fmt="NLC"
        )
    finally:
        for hook in hooks:
            hook.remove()
    return found


def features(model, x):
    """Give what a classifier would read."""
    return model.forward_head(model.forward_features(x), pre_logits=True)


def embedding(model, x):
    found = []
    with model.blocks[0].register_forward_pre_hook(lambda _, given: found.append(given[0])):
        outputs(model, x)
    return found[0]


ALL = [*HAND, *(name for name in METHODS if name not in {text.partition(":")[0] for text in HAND} | {"st-adapter"})]


@pytest.mark.parametrize("name", METHODS)
def test_the_facts_of_a_file_are_read_as_python_reads_them(name):
    method, path = load_method(name), FOLDER / f"{name.replace('-', '_')}.py"
    assert MethodSpec(**read_literals(path, "SPEC")) == method.SPEC == METHODS[name]
    assert hasattr(method, "merge") == METHODS[name].merges


def parameters(text, rank, model="vit_base_patch16_224"):
    with torch.device("meta"):
        trunk = timm.create_model(model, num_classes=0).requires_grad_(False)
        if text == "st-adapter":
            inflate(trunk, name=model)
            trunk.requires_grad_(False)
        insert(text, trunk, rank=rank, grid=(16, 14, 14) if text == "st-adapter" else (14, 14))
    return sum(parameter.numel() for parameter in trained(trunk).values())


@pytest.mark.parametrize(
    ("text", "rank", "published"),
    [
        ("adapter:pfeiffer", 8, "0.16"),  # LoSA's Table 1: Adapter
        ("adaptformer", 8, "0.16"),  # the same table, as are the next two
        ("convpass", 8, "0.33"),
        ("lora:qkv", 8, "0.29"),
        ("fact:tt", 4, "0.008"),  # the abstract: 8 K
        ("vpt:deep", 10, "0.092"),  # 12 blocks, 10 prompts, 768 channels
    ],
)
def test_vit_b_has_the_published_number_of_parameters(text, rank, published):
    count = parameters(text, rank)
    assert f"{count / 1e6:.{len(published.partition('.')[2])}f}" == published


@pytest.mark.parametrize(
    ("text", "rank", "formula"),
    [
        ("adapter:houlsby", 8, 24 * (2 * 768 * 8 + 8 + 768)),
        ("adaptformer", 64, 12 * (2 * 768 * 64 + 64 + 768)),
        ("lora", 8, 12 * 8 * (4 * 768 + 2 * 768 + 2 * 5 * 768)),
        ("lora:proj", 4, 12 * 4 * 2 * 768),
        ("fact:tt", 16, 2 * 768 * 16 + 144 * 16**2),
        ("fact:tk", 32, 2 * 768 * 32 + 144 * 32 + 32**3),
        ("vpt:shallow", 10, 7_680),
        ("st-adapter", 384, 7_110_144),
    ],
)
def test_vit_b_has_the_parameters_of_the_formula(text, rank, formula):
    assert parameters(text, rank) == formula


def test_ssf_has_the_published_parameters_with_the_mean_classifier():
    inside = parameters("ssf", 0)
    vtab = sum(task.classes for task in TASKS.values()) / len(TASKS)
    fgvc = (200 + 555 + 102 + 120 + 196) / 5
    assert [f"{(inside + classes * 769) / 1e6:.2f}" for classes in (vtab, fgvc)] == ["0.24", "0.39"]


@pytest.mark.parametrize("kind", TRUNKS)
@pytest.mark.parametrize("text", HAND)
def test_a_method_computes_what_is_published(text, kind):
    plain, model = tiny(kind), changed(text, tiny(kind))
    own = trained(model)
    hand = HAND[text](plain.state_dict(), own, depth=DEPTH, heads=HEADS, prefix=plain.num_prefix_tokens, grid=GRID)
    x = embedding(plain, pixels(plain))
    if text == "ssf":
        embed = hand.scaled("patch_embed.norm", plain.patch_embed(pixels(plain)))
        x = plain.norm_pre(plain._pos_embed(embed))
    for found, expected in zip(outputs(model, pixels(model)), by_hand_outputs := hand.outputs(x), strict=True):
        assert found.shape == (2, 12 + plain.num_prefix_tokens, WIDTH)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    last = by_hand_outputs[-1]
    pooled = hand.norm("norm", last[:, 0]) if plain.num_prefix_tokens else hand.norm("fc_norm", last.mean(1))
    torch.testing.assert_close(features(model, pixels(model)), pooled, rtol=1e-9, atol=1e-9)


def test_st_adapter_computes_what_is_published():
    plain, model = video(), changed("st-adapter", video(), grid=(3, *GRID))
    hand = by_hand.STAdapter(plain.state_dict(), trained(model), depth=DEPTH, heads=HEADS, prefix=1, grid=(3, *GRID))
    expected = hand.outputs(embedding(plain, pixels(plain, frames=6)))
    for found, other in zip(outputs(model, pixels(model, frames=6)), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", TRUNKS)
@pytest.mark.parametrize("text", [text for text in ALL if not text.startswith("vpt")])
def test_a_method_starts_as_the_trunk_itself_or_near_it(text, kind):
    plain, model = tiny(kind), insert(text, tiny(kind), rank=0 if not method_of(text).spec.rank else RANK)
    (first, *_), (found, *_) = outputs(plain, pixels(plain)), outputs(model, pixels(plain))
    if text.startswith(NEAR_ITSELF):
        assert 0 < (found - first).abs().max() < 0.3 * first.abs().max()
    else:
        assert torch.equal(found, first)


def test_st_adapter_starts_as_the_trunk_itself():
    plain, model = video(), insert("st-adapter", video(), grid=(3, *GRID))
    assert torch.equal(outputs(plain, pixels(plain, frames=6))[-1], outputs(model, pixels(plain, frames=6))[-1])


def prompts_start_within(text):
    model = insert(text, tiny(), rank=2_000)
    bound = (6 / (3 * PATCH**2 + WIDTH)) ** 0.5
    return [0.99 * bound < own.abs().max() < bound for own in trained(model).values()]


@pytest.mark.parametrize("text", ["vpt:shallow", "vpt:deep"])
def test_prompts_start_uniform_in_the_published_range(text):
    assert prompts_start_within(text) == [True] * (DEPTH if text == "vpt:deep" else 1)


@pytest.mark.parametrize("text", HAND)
def test_gradients_reach_all_that_is_trained_and_nothing_else(text):
    model = tiny()
    plain = {id(parameter) for parameter in model.parameters()}
    changed(text, model)
    (outputs(model, pixels(model))[-1].sum() + features(model, pixels(model)).square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert (id(parameter) in plain) == (not parameter.requires_grad), name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name


@pytest.mark.parametrize("text", HAND)
def test_what_is_trained_is_stored_once_and_found_by_its_name(text):
    model, other = changed(text, tiny("registers, layer scale")), insert(text, tiny("registers, layer scale"), seed=5)
    stored = {name: model.state_dict()[name].clone() for name in trained(model)}
    places = [value.data_ptr() for value in model.state_dict().values() if value.numel()]
    assert len(places) == len(set(places))
    assert other.load_state_dict(stored, strict=False).unexpected_keys == []
    assert torch.equal(outputs(other, pixels(other))[-1], outputs(model, pixels(model))[-1])


@pytest.mark.parametrize("kind", TRUNKS)
@pytest.mark.parametrize("text", MERGED)
def test_a_merged_trunk_is_a_plain_one_with_the_same_outputs(text, kind):
    model = changed(text, tiny(kind))
    expected = features(model, pixels(model))
    load_method(method_of(text).name).merge(model)
    assert {type(module) for module in model.modules()} == {type(module) for module in tiny(kind).modules()}
    kept = [name for name in tiny(kind).state_dict() if not name.endswith(".bias")]  # a shift may add a bias
    assert [name for name in model.state_dict() if not name.endswith(".bias")] == kept
    assert not trained(model)
    torch.testing.assert_close(features(model, pixels(model)), expected, rtol=1e-9, atol=1e-9)


def test_a_video_trunk_is_merged_too():
    model = changed("ssf", video(), grid=(3, *GRID))
    expected = features(model, pixels(model, frames=6))
    load_method("ssf").merge(model)
    torch.testing.assert_close(features(model, pixels(model, frames=6)), expected, rtol=1e-9, atol=1e-9)


def test_shared_factors_stay_shared_in_a_copy():
    model = changed("fact:tt", tiny())
    copied = deepcopy(model)
    assert torch.equal(outputs(copied, pixels(model))[-1], outputs(model, pixels(model))[-1])
    with torch.no_grad():
        copied.fact.v.zero_()
    assert torch.equal(outputs(copied, pixels(model))[-1], outputs(tiny(), pixels(model))[-1])
    assert not torch.equal(outputs(model, pixels(model))[-1], outputs(tiny(), pixels(model))[-1])


@pytest.mark.parametrize("text", HAND)
def test_blocks_that_are_computed_again_give_the_same_gradients(text):
    found = []
    for again in (False, True):
        model = changed(text, tiny())
        model.set_grad_checkpointing(again)
        (features(model, pixels(model)) * features(model, -pixels(model))).sum().backward()  # two passes at once
        found.append([parameter.grad for parameter in trained(model).values()])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", [*HAND, "st-adapter"])
def test_autocast_keeps_the_stream_and_the_gradients_in_float32(text, dtype):
    frames, grid = (6, (3, *GRID)) if text == "st-adapter" else (1, GRID)
    model = insert(text, (video if frames > 1 else tiny)(dtype=torch.float32), grid=grid)
    exact = outputs(model, pixels(model, frames=frames))[-1]
    with torch.autocast("cpu", dtype):
        found = outputs(model, pixels(model, frames=frames))[-1]
        features(model, pixels(model, frames=frames)).square().sum().backward()
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 0.03 * exact.norm()
    for parameter in trained(model).values():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


class Exported(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return outputs(self.model, x)[-1]


@pytest.mark.parametrize(
    "text",
    [
        "vpt:deep",
        *(
            pytest.param(own, marks=pytest.mark.slow)
            for own in ("adapter", "convpass", "fact:tk", "st-adapter", "vpt:shallow")
        ),
    ],
)
def test_a_trunk_with_a_method_is_exported_for_any_number_of_images(text):
    frames, grid = (6, (3, *GRID)) if text == "st-adapter" else (1, GRID)
    model = changed(text, (video if frames > 1 else tiny)(), grid=grid)
    dynamic = {"x": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(Exported(model), (pixels(model, 2, frames),), dynamic_shapes=dynamic)
    for batch in (1, 5):
        x = pixels(model, batch, frames)
        torch.testing.assert_close(program.module()(x), outputs(model, x)[-1], rtol=1e-9, atol=1e-9)


def eva(**options):
    torch.manual_seed(0)
    shape = {"img_size": 28, "patch_size": 7, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": 0}
    return Eva(**shape, **options).eval().requires_grad_(False).double()


@pytest.mark.parametrize("text", ["adapter", "adaptformer", "convpass", "lora:proj+mlp"])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_a_rotary_trunk_takes_methods_that_need_no_positions(text, scale):
    plain, model = (eva(use_rot_pos_emb=True, swiglu_mlp=True, init_values=scale) for _ in range(2))
    insert(text, model, grid=(4, 4))
    x = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    if text != "adapter":
        assert torch.equal(outputs(model, x)[-1], outputs(plain, x)[-1])
    scatter(trained(model).values())
    outputs(model, x)[-1].square().sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in trained(model).values())


def beit(**options):
    shape = {"img_size": 28, "patch_size": 7, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": 0}
    torch.manual_seed(0)
    return Beit(**shape, use_rel_pos_bias=True, **options).eval().requires_grad_(False).double()


@pytest.mark.parametrize("text", ["adaptformer", "convpass"])
def test_a_layer_scale_that_is_a_parameter_does_not_scale_what_is_trained(text):
    plain, model = (beit(init_values=scale) for scale in (1e-9, 1e-9))  # branches of the trunk add as good as nothing
    changed(text, model, grid=(4, 4))
    x = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    difference = outputs(model, x)[-1] - outputs(plain, x)[-1]
    assert difference.norm() > 0.1


@pytest.mark.parametrize(
    ("text", "make", "message"),
    [
        ("vpt:deep", lambda: eva(use_rot_pos_emb=True), "sees positions, which prompts have none of"),
        ("vpt:shallow", beit, "sees positions, which prompts have none of"),
        ("lora:qkv", eva, "keeps the biases of its queries and values apart"),
        ("fact:tt", beit, "keeps the biases of its queries and values apart"),
        ("ssf", eva, "keeps the biases of its queries and values apart"),
        ("lora:mlp", lambda: VisionTransformer(**TINY, mlp_layer=SwiGLU), "have no linear layer mlp.fc1"),
        (
            "fact:tk",
            lambda: VisionTransformer(**TINY, mlp_layer=SwiGLUPacked, mlp_ratio=2.5),
            "no multiples of its width",
        ),
        ("ssf", lambda: VisionTransformer(**TINY, norm_layer="rmsnorm"), "norm without weight or bias"),
        ("st-adapter", tiny, "for videos, and backbone 'tiny' takes images"),
    ],
)
def test_a_trunk_that_does_not_fit_is_refused(text, make, message):
    with pytest.raises(UserError, match=message):
        insert(text, make())


@pytest.mark.parametrize("text", HAND)
def test_a_rank_that_cannot_be_is_refused(text):
    for rank in (0, 5_000):
        if method_of(text).spec.rank:
            with pytest.raises(UserError, match=f"rank is {rank}"):
                insert(text, tiny(), rank=rank)


@pytest.mark.parametrize("rank", [0, 385])
def test_st_adapter_is_no_wider_than_the_trunk_or_the_publications(rank):
    with pytest.raises(UserError, match=f"rank is {rank}: choose one from 1 to 384, the default"):
        insert("st-adapter", video(), rank=rank, grid=(3, *GRID))
    insert("st-adapter", video(), rank=384, grid=(3, *GRID))


def test_packed_swiglu_is_adapted_and_merged():
    def make():
        torch.manual_seed(0)
        return VisionTransformer(**TINY, mlp_layer=SwiGLUPacked, mlp_ratio=2.5).double().eval().requires_grad_(False)

    for text in ("ssf", "lora"):
        model = changed(text, make())
        expected = features(model, pixels(model))
        load_method(method_of(text).name).merge(model)
        torch.testing.assert_close(features(model, pixels(model)), expected, rtol=1e-9, atol=1e-9)


def test_lora_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UserError, match=r"lora needs PEFT: pip install 'losa-cache\[methods\]'"):
        load_method("lora").insert(Trunk("tiny", tiny(), WIDTH, 1, GRID), rank=8, variant="qkv")

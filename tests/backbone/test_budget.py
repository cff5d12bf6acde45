"""A trunk that streams through a small device: the plan's properties, and the same numbers as the plain road."""

import gc
import weakref
from itertools import accumulate

import pytest
import timm
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import ParallelScalingBlock
from torch.profiler import ProfilerActivity, profile

from losa_cache.backbone import Backbone, load_backbone
from losa_cache.backbone.budget import Sizes, fitting_batch, group_blocks
from losa_cache.backbone.mapped import MappedFile
from losa_cache.backbone.names import vit_digits
from losa_cache.backbone.streamed import StreamedTrunk
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError
from losa_cache.machine.sizes import parse_bytes
from losa_cache.points import stored_points, tapped_points
from tests.backbone.test_model import TRUNKS, shrink
from tests.conftest import tiny_backbone

POINTS = [*stored_points("both", [1, 2, 3], embedding=True), "block.1", "block.2"]

trunks = st.builds(
    Sizes,
    blocks=st.lists(st.integers(1, 100), min_size=1, max_size=12).map(tuple),
    rest=st.integers(0, 50),
    image=st.integers(1, 20),
)


def fewest(sizes, room):
    """Groups of at most ``room`` bytes, by dynamic programming."""
    best = [0]
    for end in range(1, len(sizes) + 1):
        best.append(min(best[start] + 1 for start in range(end) if sum(sizes[start:end]) <= room))
    return best[-1]


@given(trunks, st.integers(1, 2000), st.integers(1, 20))
def test_groups_fit_two_at_a_time_cover_every_block_once_and_are_the_fewest(sizes, budget, batch):
    room = budget - sizes.rest - batch * sizes.image
    try:
        groups = group_blocks(sizes, budget, batch)
    except UserError:
        assert room < min(sum(sizes.blocks), 2 * max(sizes.blocks))
        return
    assert [block for group in groups for block in group] == list(range(len(sizes.blocks)))
    weights = [sum(sizes.blocks[block] for block in group) for group in groups]
    if len(groups) == 1:
        assert weights[0] <= room
    else:
        assert all(one + other <= room for one, other in zip(weights, weights[1:] + weights[:1], strict=True))
        assert len(groups) == fewest(sizes.blocks, room // 2)


@given(trunks, st.integers(1, 2000), st.integers(1, 20))
def test_a_batch_is_chosen_that_fits_whenever_one_image_does(sizes, budget, most):
    batch = fitting_batch(sizes, budget, most)
    assert 1 <= batch <= most
    assume(sizes.least + sizes.image <= budget)
    assert group_blocks(sizes, budget, batch)
    if sizes.weights + most * sizes.image <= budget:
        assert batch == most


def test_what_a_refusal_advises_is_enough():
    sizes = Sizes((3_000_001,) * 4, 500_000, 70_000)
    with pytest.raises(UserError, match=r"two blocks of 3\.0 MB .* a batch of 8 need 8MB: give at least") as error:
        group_blocks(sizes, 7_000_000, 8)
    assert "batch size below 8" in str(error.value)
    assert len(group_blocks(sizes, parse_bytes("8MB"), 8)) == 4


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("512MB", 512 * 10**6), ("1.5GiB", 3 * 2**29), ("64 kb", 64_000), ("12345", 12345), (7, 7)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "many", "4XB", "-1GB", "0", 0, "GB", "1e9999"])
def test_what_is_no_size_is_refused_in_a_sentence(text):
    with pytest.raises(UserError, match=r"is no size: write 4GB, 512MB, 1\.5GiB or a number of bytes"):
        parse_bytes(text)


def streamed(backbone, *, blocks=1, batch=3, compute=torch.float32):
    """Give a backbone just the budget for groups of so many blocks."""
    backbone.to("cpu", budget=10**9)
    sizes = backbone.streamed.sizes(compute)
    budget = sizes.rest + batch * sizes.image + min(sum(sizes.blocks), 2 * blocks * max(sizes.blocks))
    return backbone.to("cpu", budget=budget)


def pixels_of(backbone, count):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, *backbone.input.size), dtype=torch.uint8, generator=generator)


def run_all(backbone, batches, points, compute):
    found = [{} for _ in batches]
    sinks = [lambda at, value, kept=kept: kept.update({at: value.clone()}) for kept in found]
    backbone.run_all(batches, points, sinks, compute=compute)
    return [[kept[at] for at in range(len(points))] for kept in found]


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TRUNKS)
def test_every_point_of_every_batch_is_bit_for_bit_that_of_the_plain_road(name, compute):
    backbone = shrink(name)
    batches = pixels_of(backbone, 8).split(3)  # the last of two
    plain = run_all(backbone, batches, POINTS, compute)
    streamed(backbone, compute=compute)
    assert len(backbone.streamed.groups(3, compute)) == 3
    for _ in range(2):  # and with the first group that the run before has sent for
        for ours, theirs in zip(run_all(backbone, batches, POINTS, compute), plain, strict=True):
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in backbone.model.modules())


@pytest.mark.parametrize(
    "options",
    [{}, {"reg_tokens": 4}, {"pre_norm": True}, {"init_values": 0.5}, {"class_token": False, "global_pool": "avg"}],
)
@pytest.mark.parametrize("blocks", [1, 2, 3, 6])
def test_any_number_of_blocks_at_a_time(options, blocks):
    backbone = tiny_backbone(depth=6, **options)
    batches = pixels_of(backbone, 5).split(2)
    points = [*POINTS, "block.6"]
    plain = run_all(backbone, batches, points, torch.float32)
    streamed(backbone, blocks=blocks, batch=2)
    assert len(backbone.streamed.groups(2, torch.float32)) == {1: 6, 2: 3, 3: 1, 6: 1}[blocks]  # twice 3: all
    for ours, theirs in zip(run_all(backbone, batches, points, torch.float32), plain, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_outputs_are_cut_into_batches_that_fit():
    backbone = tiny_backbone()
    pixels = pixels_of(backbone, 7)
    plain = backbone.outputs(pixels, POINTS, compute=torch.float32)
    streamed(backbone, batch=2)
    assert backbone.fitting_batch(7, torch.float32) == 2
    for ours, theirs in zip(backbone.outputs(pixels, POINTS, compute=torch.float32), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # products of batches of 2, not of 7
    backbone.require_branches()


def test_no_more_than_two_groups_are_ever_there(monkeypatch):
    bring, live, most = StreamedTrunk._bring, set(), []

    def counted(self, group, compute):
        weights = bring(self, group, compute)
        for tensor in (tensor for block in weights for tensor in block.values()):
            live.add(id(tensor))
            weakref.finalize(tensor, live.discard, id(tensor))
        most.append(len(live))
        return weights

    monkeypatch.setattr(StreamedTrunk, "_bring", counted)
    backbone = streamed(tiny_backbone(depth=8), blocks=2, batch=2)
    for _ in range(3):
        run_all(backbone, pixels_of(backbone, 6).split(2), ["block.8"], torch.float32)
    gc.collect()
    tensors = len(list(backbone.model.blocks[0].parameters()))
    assert len(most) in (3 * 4, 3 * 4 + 1)  # the first group of a next pass may be on its way
    assert max(most) <= 2 * 2 * tensors


def test_an_error_on_the_way_leaves_nothing_behind():
    backbone = streamed(tiny_backbone(), batch=2)
    batches = pixels_of(backbone, 4).split(2)
    plain = run_all(tiny_backbone(), batches, ["block.4"], torch.float32)

    def fail(at, value):
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        backbone.run_all(batches, ["block.2"], [fail, fail], compute=torch.float32)
    assert torch.equal(run_all(backbone, batches, ["block.4"], torch.float32)[1][0], plain[1][0])


def test_without_a_budget_again():
    backbone = streamed(tiny_backbone())
    pixels = pixels_of(backbone, 2)
    ours = backbone.to("cpu").outputs(pixels, ["block.4"], compute=torch.float32)
    assert backbone.streamed is None
    assert torch.equal(ours[0], tiny_backbone().outputs(pixels, ["block.4"], compute=torch.float32)[0])


def test_a_trunk_that_works_between_its_blocks_is_refused():
    backbone = streamed(tiny_backbone())
    before = backbone.model.forward_intermediates

    def between(images, **options):
        backbone.model.blocks[0](torch.zeros(1, 5, 32))
        return before(images, **options)

    backbone.model.forward_intermediates = between
    with pytest.raises(UserError, match="does more between its blocks"):
        backbone.outputs(pixels_of(backbone, 2), ["block.4"], compute=torch.float32)


def test_branches_of_a_block_without_them_are_refused_as_ever():
    backbone = streamed(tiny_backbone(block_fn=ParallelScalingBlock))
    with pytest.raises(UserError, match="a ParallelScalingBlock has no attention branch of its own"):
        backbone.outputs(pixels_of(backbone, 2), tapped_points("attention", [1]), compute=torch.float32)


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(3)
    state = {name: torch.randn(tensor.shape) * 0.1 for name, tensor in vit_digits().state_dict().items()}
    save_file(state, tmp_path / "w.safetensors", metadata={"format": "pt"})
    return tmp_path / "w.safetensors"


def test_a_mapped_file_holds_what_safetensors_wrote(tmp_path):
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.arange(7),
        "c": torch.randn(4).bfloat16(),
        "d": torch.tensor(2.0),
        "e": torch.empty(0, 3),
        "f": torch.tensor([True, False]),
    }
    save_file(tensors, tmp_path / "t.safetensors")
    mapped = MappedFile(tmp_path / "t.safetensors")
    for _ in range(2):
        assert mapped.tensors.keys() == tensors.keys()
        assert all(torch.equal(mapped.tensors[name], tensor) for name, tensor in tensors.items())
        mapped.forget()


@pytest.mark.parametrize("img_size", [None, 32])  # another one: the position table is resampled
def test_mapped_weights_are_those_that_are_loaded_and_give_the_same_numbers(file, img_size):
    plain = load_backbone("vit_digits", weights=file, img_size=img_size)
    mapped = load_backbone("vit_digits", weights=file, img_size=img_size, mapped=True)
    assert mapped.weights == plain.weights
    pixels = pixels_of(plain, 3)
    (theirs,) = run_all(plain, [pixels], POINTS, torch.float32)
    (ours,) = run_all(streamed(mapped), [pixels], POINTS, torch.float32)
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("change", ["half", "module."])
def test_mapped_files_of_another_dtype_or_prefix_are_those_that_are_loaded(file, change, tmp_path):
    state = MappedFile(file).tensors
    if change == "half":
        state = {name: tensor.bfloat16() for name, tensor in state.items()}
    else:
        state = {change + name: tensor for name, tensor in state.items()}
    save_file(state, tmp_path / "other.safetensors")
    plain, mapped = (
        load_backbone("vit_digits", weights=tmp_path / "other.safetensors", mapped=m) for m in (False, True)
    )
    assert mapped.weights == plain.weights


def test_a_trunk_that_computes_its_buffers_is_mapped_too(tmp_path):
    name = "eva02_tiny_patch14_224"
    donor = load_backbone(name, weights="random", img_size=28)
    save_file(donor.model.state_dict(), tmp_path / "w.safetensors")
    plain, mapped = (
        load_backbone(name, weights=tmp_path / "w.safetensors", img_size=28, mapped=m) for m in (False, True)
    )
    pixels = pixels_of(plain, 2)
    theirs = plain.outputs(pixels, ["block.12"], compute=torch.float32)
    assert torch.equal(streamed(mapped).outputs(pixels, ["block.12"], compute=torch.float32)[0], theirs[0])


def test_files_that_do_not_fit_or_cannot_be_read_are_refused_as_ever(file, tmp_path):
    state = MappedFile(file).tensors
    save_file({k: v for k, v in state.items() if k != "blocks.3.mlp.fc1.weight"}, tmp_path / "less.safetensors")
    save_file(state | {"norm.weight": torch.zeros(95)}, tmp_path / "other.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "text.safetensors").write_bytes((10).to_bytes(8, "little") + b"not json!!")
    for name, message in {
        "less": r"1 of its tensors .*blocks\.3\.mlp\.fc1\.weight",
        "other": "does not fit",
        "noise": "cannot be read",
        "text": "cannot be read",
        "absent": "there is no weights file",
    }.items():
        with pytest.raises(UserError, match=message):
            load_backbone("vit_digits", weights=tmp_path / f"{name}.safetensors", mapped=True)


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "vit_base_patch16_siglip_224", "eva02_base_patch14_224"])
def test_the_work_of_an_image_is_estimated_from_above(name):
    """Beside torch's own record of what is allocated, in a block of the real width."""
    model = timm.create_model(name, depth=1, num_classes=0)
    spec = InputSpec.from_timm(resolve_model_data_config(model))
    backbone = Backbone(model, name=name, random=True, input=spec)
    work = backbone.to("cpu", budget=10**9).streamed.sizes(torch.float32).image
    backbone.to("cpu")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        backbone.run(pixels_of(backbone, 2), ["block.1"], lambda _, value: value.clone(), compute=torch.float32)
    memory = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    memory.sort(key=lambda event: event.start_ns())
    peak = max(accumulate(event.nbytes() for event in memory))
    assert peak <= 2 * work <= 2.5 * peak

"""``lc.AdaptedModel``: against each adapter on a cache of the same images, whatever else shares the backbone."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import losa_cache as lc
from losa_cache.apply import group as groups
from losa_cache.apply.adapted import _Reading
from losa_cache.extract.extract import extract
from losa_cache.sidenet.operand import Projected
from tests.conftest import tiny_backbone, tiny_samples

COUNT = 17
KINDS = {
    "default": {"rank": 2},
    "rank 3": {"rank": 3, "seed": 5},
    "rank 1": {"rank": 1, "seed": 6},
    "paper": {"head": "last", "rank": 2},
    "embedding": {"head": "last", "rank": 2, "start": "embedding"},
    "half": {"rank": 2, "layers": 2},
    "mlp": {"side": "mlp", "rank": 2},
    "ladder": {"side": "ladder", "rank": 16},
    "linear": {"side": "linear"},
    "fusion": {"side": "fusion"},
    "attentive": {"side": "attentive"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A test cache, pixels of its images in its order, and an adapter of each kind."""
    folder = tmp_path_factory.mktemp("adapted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSA_CACHE_HOME", str(folder / "home"))
        caches = [
            extract(
                tiny_backbone(), tiny_samples(count, split=split), embedding=True, precision="float32", device="cpu",
                out=folder / f"{split}.zarr",
            )
            for split, count in (("train", 23), ("test", COUNT))
        ]  # fmt: skip
        for name, options in KINDS.items():
            lc.train(caches[0], epochs=2, lr=0.01, device="cpu", out=folder / name, **options)
    return caches[1], pixels_of(caches[1].sample_ids), folder


def pixels_of(ids):
    samples, transform = tiny_samples(COUNT, split="test"), tiny_backbone().input.transform()
    return torch.stack([transform(samples.load(samples.ids.index(name))) for name in ids])


def load(folder, names=KINDS):
    return {name: lc.load_adapter(folder / name, device="cpu") for name in names}


def from_cache(adapter, cache, read):
    """Compute from the cache, without the backbone."""
    options = {"points": adapter.points, "shuffle": False, "batch_size": COUNT, "device": "cpu"}
    with torch.inference_mode(), lc.batches(cache, **options) as batches:
        (batch,) = batches
        return read(adapter, batch.blocks)


def test_one_pass_gives_what_each_adapter_makes_of_a_cache(trained):
    cache, pixels, folder = trained
    model = lc.AdaptedModel(tiny_backbone(), load(folder))
    found, vectors = model(pixels), model.embed(pixels)
    assert list(found) == list(vectors) == list(KINDS)
    for name in KINDS:
        alone = lc.load_adapter(folder / name, cache=cache, device="cpu")
        expected = from_cache(alone, cache, lambda own, blocks: own(blocks))
        assert found[name].dtype == torch.float32
        assert torch.allclose(found[name], expected, atol=1e-5, rtol=1e-5), name
        vector = from_cache(alone, cache, lambda own, blocks: own.embed(blocks))
        assert vector.shape == (COUNT, alone.features)
        assert torch.allclose(vectors[name], vector, atol=1e-5, rtol=1e-5), name


def test_the_refined_vector_is_what_the_tail_makes_of_the_refined_tokens(trained):
    cache, pixels, folder = trained
    adapter = lc.load_adapter(folder / "paper", device="cpu")
    y = from_cache(adapter, cache, lambda own, blocks: own.adapter.side.plain(list(blocks)))
    backbone = tiny_backbone()
    expected = backbone.model.norm(y)[:, 0]  # timm's own: the class token behind the final norm
    assert torch.allclose(lc.AdaptedModel(backbone, {"p": adapter}).embed(pixels)["p"], expected, atol=1e-5)


@pytest.mark.parametrize("projects", [True, False])
def test_projecting_blocks_as_they_come_changes_nothing(projects, trained, monkeypatch):
    _, pixels, folder = trained
    model = lc.AdaptedModel(tiny_backbone(), load(folder))
    expected = model(pixels)
    monkeypatch.setattr("losa_cache.apply.adapted._projecting_is_smaller", lambda _: projects)
    found = model(pixels)
    assert all(torch.allclose(found[name], expected[name], atol=1e-5, rtol=1e-5) for name in KINDS)


def test_no_block_output_is_kept_where_products_are_smaller(trained):
    _, _, folder = trained
    backbone = tiny_backbone()
    model = lc.AdaptedModel(backbone, load(folder, ["rank 1"]))
    members = model._members
    reading = _Reading(members.groups, {id(own) for own in model.adapters.values()}, model._pooling, torch.float32)
    kept = reading._blocks[0]
    values = torch.randn(2, backbone.tokens, backbone.width)
    for at, point in enumerate(reading.points[:-1]):
        reading.take(at, values)
        assert isinstance(kept[point], Projected)
        assert kept[point].product.numel() < values.numel() / 4
        assert kept[point].product.untyped_storage().nbytes() == kept[point].product.nbytes


def test_only_the_adapters_that_are_asked_for_are_computed(trained):
    _, pixels, folder = trained
    model = lc.AdaptedModel(tiny_backbone(), load(folder))
    whole = model(pixels)
    asked = ["rank 1", "default"]
    found = model(pixels, asked)
    assert list(found) == asked
    assert all(torch.allclose(found[name], whole[name], atol=1e-5) for name in asked)
    assert model(pixels, []) == {}
    with pytest.raises(lc.UserError, match=r"there is no adapter 'rank': there are 'default', .*"):
        model(pixels, ["rank"])


def test_adapters_come_and_go(trained):
    _, pixels, folder = trained
    loaded = load(folder)
    model = lc.AdaptedModel(tiny_backbone())
    assert model(pixels) == {}
    expected = lc.AdaptedModel(tiny_backbone(), load(folder))(pixels)
    for name, adapter in loaded.items():
        model.add(name, adapter)
        assert torch.allclose(model(pixels)[name], expected[name], atol=1e-5)
    model.remove("rank 3")
    model.rename("default", "first")
    found = model(pixels)
    assert list(found) == ["first", *(name for name in KINDS if name not in ("default", "rank 3"))]
    assert torch.allclose(found["first"], expected["default"], atol=1e-5)
    assert torch.allclose(found["rank 1"], expected["rank 1"], atol=1e-5)
    with pytest.raises(lc.UserError, match="'first' is there already"):
        model.rename("paper", "first")
    with pytest.raises(lc.UserError, match="'first' is there already"):
        model.add("first", loaded["paper"])
    for change in (model.remove, lambda name: model.rename(name, "other")):
        with pytest.raises(lc.UserError, match="there is no adapter 'default'"):
            change("default")


@pytest.mark.slow
def test_adapters_come_and_go_while_it_runs(trained):
    _, pixels, folder = trained
    expected = lc.AdaptedModel(tiny_backbone(), load(folder, ["default"]))(pixels)["default"]
    model = lc.AdaptedModel(tiny_backbone(), load(folder, ["default"]))
    stop, wrong = threading.Event(), []

    def use():
        while not stop.is_set():
            found = model(pixels, ["default"])["default"]
            if not torch.allclose(found, expected, atol=1e-5):
                wrong.append(found)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        for _ in range(10):
            for name in ("rank 3", "rank 1", "mlp"):
                model.add(name, lc.load_adapter(folder / name, device="cpu"))
            for name in ("rank 1", "mlp", "rank 3"):
                model.remove(name)
    finally:
        stop.set()
        thread.join()
    assert not wrong


def test_a_stack_holds_so_many_and_no_weight_twice(trained, monkeypatch):
    _, pixels, folder = trained
    monkeypatch.setattr(groups, "TOGETHER", 2)
    names = [f"{name} {turn}" for turn in range(2) for name in ("default", "rank 3", "rank 1")]
    model = lc.AdaptedModel(
        tiny_backbone(), {name: lc.load_adapter(folder / name[:-2], device="cpu") for name in names}
    )
    assert [len(group.adapters) for group in model._members.groups] == [2, 2, 2]
    model.remove("rank 3 0")
    assert sorted(len(group.adapters) for group in model._members.groups) == [1, 2, 2]
    found = model(pixels)
    assert torch.allclose(found["default 0"], found["default 1"], atol=1e-5)
    for group in model._members.groups:
        memory = {tensor.untyped_storage().data_ptr() for packed in group._packed for tensor in packed.tensors()}
        for adapter in group.adapters:
            assert {p.untyped_storage().data_ptr() for p in adapter.adapter.side.parameters()} <= memory


def test_frozen_tensors_are_there_once(trained):
    _, _, folder = trained
    model = lc.AdaptedModel(tiny_backbone(), load(folder))
    assert len({id(own.adapter.tail) for own in model.adapters.values()}) == 1


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (tiny_backbone(1), r"backbone\.name .*; backbone\.weights"),
        (tiny_backbone(depth=3), r"backbone\.weights .*layers \(\[4\] are not among 3\)"),
        (tiny_backbone(patch_size=2), r"backbone\.weights .*tokens \(5 of the adapter, 17 of the backbone\)"),
    ],
)
def test_an_adapter_of_another_backbone_is_refused(other, field, trained):
    folder = trained[2]
    with pytest.raises(lc.UserError, match=f"adapter 'x' does not fit the backbone: .*{field}"):
        lc.AdaptedModel(other, {"x": lc.load_adapter(folder / "default", device="cpu")})


def test_other_preprocessing_is_refused(trained):
    backbone = tiny_backbone()
    backbone.input = replace(backbone.input, mean=(0.4, 0.5, 0.5))
    with pytest.raises(lc.UserError, match=r"does not fit the backbone: input\.mean"):
        lc.AdaptedModel(backbone, {"x": lc.load_adapter(trained[2] / "default", device="cpu")})


def test_what_cannot_be_computed_is_said(trained):
    _, pixels, folder = trained
    model = lc.AdaptedModel(tiny_backbone(), load(folder, ["default"]))
    for wrong in (pixels[:0], pixels[..., :4], pixels.flatten(1)):
        with pytest.raises(lc.UserError, match="give at least one image of 3 x 8 x 8"):
            model(wrong)
    with pytest.raises(lc.UserError, match=r"load it first, with losa_cache\.load_adapter"):
        model.add("other", str(folder / "default"))


def test_a_whole_batch_may_pass_in_parts(trained):
    """As it does where the backbone is streamed through a device's memory."""
    _, pixels, folder = trained
    model = lc.AdaptedModel(tiny_backbone(), load(folder))
    expected = model(pixels)
    model.backbone.fitting_batch = lambda most, compute: min(most, 4)
    found = model(pixels)
    assert all(torch.allclose(found[name], expected[name], atol=1e-5, rtol=1e-5) for name in KINDS)
    assert np.isfinite(found["default"].numpy()).all()

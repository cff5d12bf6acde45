"""The backbone in the loop: the same numbers as from a cache, no gradient in it, and augmentation that repeats."""

import json
from functools import partial

import numpy as np
import pytest
import torch

import losa_cache as lc
from losa_cache.cache.precision import PRECISIONS
from losa_cache.calibrate import fit_encoding
from losa_cache.data.augment import BatchAugmentation
from losa_cache.extract.extract import extract
from losa_cache.inputs import open_inputs
from losa_cache.points import tapped_points
from losa_cache.tasks.classification import TASK
from losa_cache.train.batch import Request
from losa_cache.train.cached import CachedSource
from losa_cache.train.loop import EpochProgress, make_optimizer, train_epoch
from losa_cache.train.memoised import MemoisedSource
from losa_cache.train.mixed import MixedSource
from losa_cache.train.online import OnlineSource
from losa_cache.train.sampler import epoch_requests, requests_in_order, view_starts
from losa_cache.train.saved import new_adapter
from losa_cache.train.training_data import frozen_tail
from tests.conftest import tiny_backbone, tiny_samples

CPU = torch.device("cpu")
POLICY = "rand-m9-mstd0.5-inc1"
TRUNKS = {
    "cls": {},
    "gap": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 3},
    "attention pool": {"class_token": False, "global_pool": "map"},
}


def online_source(backbone, samples, layers=(2, 4), precision="float32", **options):
    inputs = open_inputs(backbone, samples, precision=precision, device=CPU)
    encoding = fit_encoding(inputs, workers=2)
    points = tapped_points("block", layers)
    return OnlineSource(inputs, points, encoding, inputs.manifest.points, workers=2, **options)


def losses_of_every_step(source, cache, config):
    adapter = new_adapter(cache.manifest, frozen_tail(cache), config)
    optimizer, losses = make_optimizer(adapter, config), []
    for epoch in range(config.epochs):
        passed, sums = EpochProgress(), [0.0]
        train_epoch(
            adapter, optimizer, source, cache.samples, config, epoch=epoch, autocast=None, passed=passed,
            after_step=lambda passed=passed, sums=sums: sums.append(passed.loss.item()),
        )  # fmt: skip
        losses.extend(np.diff(sums))
    return losses


# relative difference of any step's loss, against training from unrounded activations
BOUNDS = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2, "int8": 3e-2, "int4": 2e-1, "predict:3": 2e-1}


# every precision with one trunk; with the others exact values, and predicted tokens, which prefix tokens are no part of
STEPS = [("cls", precision) for precision in BOUNDS]
STEPS += [(trunk, precision) for trunk in TRUNKS if trunk != "cls" for precision in ("float32", "predict:3")]
QUICK = {
    ("cls", "float32"),
    ("cls", "int8"),
    ("gap", "predict:3"),
    ("registers", "float32"),
    ("attention pool", "predict:3"),
}


@pytest.mark.parametrize(
    ("trunk", "precision"), [pytest.param(*step, marks=[] if step in QUICK else pytest.mark.slow) for step in STEPS]
)
def test_online_and_cached_training_give_the_same_losses_step_by_step(trunk, precision, tmp_path):
    backbone, samples = tiny_backbone(**TRUNKS[trunk]), tiny_samples()
    cache = extract(backbone, samples, precision=precision, out=tmp_path / "c.zarr", shard_bytes=20_000)
    config = lc.TrainConfig(rank=4, layers="2", epochs=3, lr=0.01, batch_size=8)
    losses = []
    for source in (CachedSource(cache, tapped_points("block", [2, 4]), CPU), online_source(backbone, samples)):
        losses.append(losses_of_every_step(source, cache, config))
        source.close()
    assert len(losses[0]) == 9
    assert sum(losses[0][6:]) < sum(losses[0][:3])
    np.testing.assert_allclose(losses[0], losses[1], rtol=BOUNDS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_plain_online_batches_are_what_the_cache_holds(precision, tmp_path):
    backbone, samples = tiny_backbone(), tiny_samples()
    with torch.no_grad():
        backbone.model.blocks[0].mlp.fc2.bias[0] = 1e5  # beyond float16: saturated by both, or infinite in one
    cache = extract(backbone, samples, precision=precision, out=tmp_path / "c.zarr", batch_size=23)
    requests = requests_in_order(np.arange(23), 23)
    pairs = []
    for source in (
        CachedSource(cache, tapped_points("block", [1, 4]), CPU),
        online_source(backbone, samples, (1, 4), precision),
    ):
        pairs.append(next(iter(source.batches(requests))))
        source.close()
    cached, online = pairs
    assert cached.ids == online.ids
    assert torch.equal(cached.labels, online.labels)
    for ours, theirs in zip(cached.blocks, online.blocks, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert (cache.manifest.overflowed > 0) == (precision == "float16")


def test_no_gradient_and_no_saved_activation_in_the_backbone():
    backbone = tiny_backbone()
    source = online_source(backbone, tiny_samples(), (1, 2, 3, 4), augment=POLICY)
    config = lc.TrainConfig(rank=2, epochs=1, batch_size=8)
    inputs = open_inputs(backbone, tiny_samples(), precision="float32", device=CPU)
    adapter = new_adapter(inputs.manifest, backbone.tail, config)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        for batch in source.batches(epoch_requests(np.arange(23), batch_size=8, seed=0, epoch=0)):
            assert not saved  # by the backbone
            assert not any(block.requires_grad or block.is_inference() for block in batch.blocks)
            adapter(batch.blocks).sum().backward()
            assert saved  # by the side network
            saved.clear()
    source.close()
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
    assert any(p.grad is not None for p in adapter.side.parameters())


@pytest.mark.parametrize("policy", [POLICY, pytest.param("crop", marks=pytest.mark.slow)])
def test_a_cache_of_views_holds_what_the_online_source_draws(policy, tmp_path):
    backbone, samples = tiny_backbone(), tiny_samples()
    cache = extract(
        backbone, samples, precision="float32", views=3, augment=policy, out=tmp_path / "c.zarr", shard_bytes=20_000
    )
    assert cache.layout.shape[0] == 69
    source, online = (
        CachedSource(cache, tapped_points("block", [2, 4]), CPU),
        online_source(backbone, samples, augment=policy),
    )
    requests, starts = [Request(np.arange(23), epoch) for epoch in range(3)], view_starts(23, views=3, seed=0)
    for request, batch in zip(requests, source.batches(requests), strict=True):
        views = (starts + request.epoch) % 3
        for view in range(3):
            drawn = Request(np.arange(23), view) if view else Request(np.arange(23))
            (fresh,) = online.batches([drawn])
            here = views == view
            assert here.any()
            for ours, theirs in zip(batch.blocks, fresh.blocks, strict=True):
                torch.testing.assert_close(ours[here], theirs[here], rtol=1e-4, atol=1e-4)
    source.close()
    online.close()


def test_mixed_batches_are_fresh_for_their_share(tiny_cache):
    backbone, samples = tiny_backbone(), tiny_samples()
    cached = CachedSource(tiny_cache, tapped_points("block", [2, 4]), CPU)
    augmentation = BatchAugmentation(mixup=0.4, classes=3)
    fresh = online_source(backbone, samples, augment=POLICY, batch_augmentation=augmentation)
    plain = online_source(backbone, samples)
    requests = epoch_requests(np.arange(23), batch_size=8, seed=0, epoch=0)
    source, soft = MixedSource(fresh, cached, 0.25, partial(TASK.soft, outputs=3)), []
    for request, batch in zip(requests, source.batches(requests), strict=True):
        (reference,) = plain.batches([Request(request.samples)])
        assert batch.ids == reference.ids
        cut = round(len(request.samples) * 0.25)
        assert cut == 2
        assert torch.equal(batch.labels[cut:].argmax(1), reference.labels[cut:])
        assert (batch.labels[cut:].max(1).values == 1).all()
        soft.append((batch.labels[:cut].max(1).values < 1).any())
        for ours, theirs in zip(batch.blocks, reference.blocks, strict=True):
            torch.testing.assert_close(ours[cut:], theirs[cut:], rtol=1e-4, atol=1e-4)
            assert not torch.allclose(ours[:cut], theirs[:cut], atol=1e-2)
    assert any(soft)  # two of one class mix to their own label
    (evaluated,) = source.batches([Request(np.arange(5))])
    assert evaluated.labels.tolist() == tiny_cache.labels[:5].tolist()
    source.close()
    plain.close()


def counting(samples):
    """The same samples, with the number of times that each was decoded."""
    counts = np.zeros(len(samples), dtype=int)
    load = samples.load

    def counted(i):
        counts[i] += 1
        return load(i)

    return type(samples)(**{**vars(samples), "load": counted}), counts


def test_held_out_features_are_computed_once(tmp_path):
    samples, counts = counting(tiny_samples())
    config = lc.OnlineConfig("tiny", "tiny", precision="float32")
    result = lc.train(
        online=config, backbone=tiny_backbone(), dataset=samples, epochs=4, rank=2, val_fraction=0.3,
        out=tmp_path / "run", device="cpu",
    )  # fmt: skip
    assert sorted(counts.tolist()) == [1] * 7 + [1 + 4] * 16  # the probe reads the training images once
    assert {"train_seconds_backbone", "train_seconds_decode", "val_top1"} <= result.metrics.keys()


def test_kept_batches_are_the_sources_own():
    source = online_source(tiny_backbone(), tiny_samples())
    kept, requests = MemoisedSource(source, CPU), requests_in_order(np.arange(23), 8)
    first, second = ([b.blocks[1].clone() for b in kept.batches(requests)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.cat(first), torch.cat([b.blocks[1] for b in source.batches(requests)]))
    source.close()


def train_options(tmp_path, name, **options):
    common = {"epochs": 3, "rank": 4, "lr": 0.01, "batch_size": 6, "val_fraction": 0.3, "device": "cpu"}
    return common | {"out": tmp_path / name} | options


def test_an_online_run_trains_evaluates_and_says_where_it_comes_from(tmp_path):
    backbone, samples = tiny_backbone(), tiny_samples()
    online = lc.OnlineConfig("tiny0", "tiny", augment=POLICY, mixup=0.2, cutmix=1.0, reprob=0.25, precision="float32")
    run = lc.train(online=online, backbone=backbone, dataset=samples, **train_options(tmp_path, "run"))
    again = lc.train(online=online, backbone=backbone, dataset=samples, **train_options(tmp_path, "again"))
    ours, theirs = run.adapter.trained_state(), again.adapter.trained_state()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    own = lc.evaluate_run(run.run, backbone=backbone, dataset=samples, device="cpu")
    assert (own["samples"], own["split"]) == (7, "held out of training")
    assert own["top1"] == run.metrics["val_top1"]
    test = tiny_samples(9, split="test")
    direct = lc.evaluate_run(run.run, split="test", backbone=backbone, dataset=test, device="cpu")
    cache = extract(backbone, test, precision="float32", out=tmp_path / "test.zarr")
    cached = lc.evaluate_run(run.run, device="cpu")
    assert (direct["samples"], direct["split"]) == (cached["samples"], cached["split"]) == (9, "test")
    assert cached["on"] == str(cache.path)
    assert direct["loss"] == pytest.approx(cached["loss"], rel=1e-4)
    with pytest.raises(lc.UserError, match="leave it out beside --cache"):
        lc.evaluate_run(run.run, cache=cache.path, split="test")


def test_a_cache_of_images_that_another_decoder_made_is_refused(tiny_cache, tmp_path):
    tiny_cache.manifest.fields["decoder"] = "nvjpeg"
    online = lc.OnlineConfig("tiny0", "tiny", share=0.5)
    with pytest.raises(lc.UserError, match="it differs in decoder"):
        lc.train(tiny_cache, online=online, backbone=tiny_backbone(), dataset=tiny_samples(), out=tmp_path / "run")


@pytest.mark.slow
def test_an_augmented_run_differs_from_a_plain_one_and_a_mixed_one_from_both(tiny_cache, tmp_path):
    options = {"backbone": tiny_backbone(), "dataset": tiny_samples()}
    losses = {}
    for name, cache, online in (
        ("cached", tiny_cache, None),
        ("plain", None, lc.OnlineConfig("tiny0", "tiny", precision="float32")),
        ("plain beside its cache", tiny_cache, lc.OnlineConfig("tiny0", "tiny")),
        ("augmented", None, lc.OnlineConfig("tiny0", "tiny", precision="float32", augment=POLICY)),
        ("mixed", tiny_cache, lc.OnlineConfig("tiny0", "tiny", share=0.5, augment=POLICY)),
    ):
        chosen = {} if online is None else options
        run = lc.train(cache, online=online, **chosen, **train_options(tmp_path, name))
        losses[name] = [json.loads(line)["train_loss"] for line in (run.run / "metrics.jsonl").read_text().splitlines()]
    assert losses["plain"] == pytest.approx(losses["cached"], rel=1e-5)
    assert losses["plain beside its cache"] == pytest.approx(losses["cached"], rel=1e-5)
    assert losses["augmented"] != pytest.approx(losses["cached"], rel=1e-4)
    assert losses["mixed"] != pytest.approx(losses["cached"], rel=1e-4)
    assert losses["mixed"] != pytest.approx(losses["augmented"], rel=1e-4)


@pytest.mark.parametrize("precision", [pytest.param("int8", marks=pytest.mark.slow), "int4"])
def test_runs_online_and_beside_an_integer_cache_are_rounded_as_it_is(precision, tmp_path):
    options = {"backbone": tiny_backbone(), "dataset": tiny_samples()}
    with torch.no_grad():  # each layer has scales of its own, and a run may use some layers only
        for block, size in zip(options["backbone"].model.blocks, (1, 5, 25, 125), strict=True):
            block.mlp.fc2.bias[3] += size
    cache = extract(**options, precision=precision, out=tmp_path / "c.zarr", batch_size=23)
    full = extract(**options, precision="bfloat16", out=tmp_path / "f.zarr", batch_size=23)
    losses = {}
    for name, store, online in (
        ("cached", cache, None),
        ("beside it", cache, lc.OnlineConfig("tiny0", "tiny")),
        ("online", None, lc.OnlineConfig("tiny0", "tiny", precision=precision)),
        ("bfloat16", full, None),
    ):
        chosen = {} if online is None else options
        run = lc.train(
            store, online=online, **chosen, **(train_options(tmp_path, name) | {"layers": "2", "head": "last"})
        )
        losses[name] = [json.loads(line)["train_loss"] for line in (run.run / "metrics.jsonl").read_text().splitlines()]
    assert losses["beside it"] == pytest.approx(losses["cached"], rel=1e-3)
    assert losses["online"] == pytest.approx(losses["cached"], rel=1e-3)
    assert losses["bfloat16"] == pytest.approx(losses["cached"], rel=0.05)
    assert losses["bfloat16"] != losses["cached"]


def test_a_cache_of_views_trains_and_is_evaluated_on_its_plain_view(tmp_path):
    backbone, samples = tiny_backbone(), tiny_samples(bad=(4,))
    cache = extract(
        backbone, samples, precision="float32", views=3, augment=POLICY, on_error="skip", out=tmp_path / "v.zarr"
    )
    plain = extract(backbone, samples, precision="float32", on_error="skip", out=tmp_path / "p.zarr")
    assert len(cache.samples) == len(plain.samples) == 22
    run = lc.train(cache, **train_options(tmp_path, "run"))
    assert lc.evaluate_run(run.run, cache=cache.path)["loss"] == pytest.approx(
        lc.evaluate_run(run.run, cache=plain.path)["loss"], rel=1e-5
    )


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 1}, r"backbone\.name .*backbone\.weights"),
        ({"resize": "exact"}, r"input\.crop_mode"),
        ({"name": "other"}, r"dataset\.name"),
        ({"precision": "bfloat16"}, "precision"),
        ({"limit": 20}, r"sampling\.limit"),
    ],
)
def test_a_cache_of_other_images_or_weights_is_refused_by_name(tiny_cache, tmp_path, online, change, field):
    settings = {key: change[key] for key in ("precision", "limit") if key in change}
    backbone = tiny_backbone(seed=change.get("seed", 0))
    backbone.input = backbone.input.resized(change.get("resize", "crop"))
    with pytest.raises(lc.UserError, match=f"differs in .*{field}"):
        lc.train(
            tiny_cache,
            online=lc.OnlineConfig("tiny0", "tiny", share=1.0 if online else 0.5, **settings),
            backbone=backbone,
            dataset=tiny_samples(name=change.get("name", "tiny")),
            **train_options(tmp_path, "run"),
        )
    assert not (tmp_path / "run").exists()


def test_an_unreadable_image_stops_an_online_run_by_name(tmp_path):
    options = train_options(tmp_path, "run", val_fraction=0)
    with pytest.raises(lc.UserError, match="'image-002' does not decode"):
        lc.train(
            online=lc.OnlineConfig("tiny0", "tiny"), backbone=tiny_backbone(), dataset=tiny_samples(bad=(2,)), **options
        )


def test_one_class_is_refused(tmp_path):
    samples = tiny_samples()
    samples = type(samples)(**{**vars(samples), "classes": ("a",), "labels": samples.labels * 0})
    with pytest.raises(lc.UserError, match="labels of data set .tiny. are all .a., .* needs at least two classes"):
        lc.train(
            online=lc.OnlineConfig("tiny0", "tiny", mixup=0.2), backbone=tiny_backbone(), dataset=samples,
            **train_options(tmp_path, "run"),
        )  # fmt: skip


def test_a_runs_paths_hold_from_any_folder_and_names_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("digits", "flowers"):
        (tmp_path / folder).mkdir()
    named = lc.OnlineConfig("vit_b", "digits", data_dir="flowers", weights="w.safetensors").to_json()
    assert (named["dataset"], named["data_dir"]) == ("digits", str(tmp_path / "flowers"))
    assert named["weights"] == str(tmp_path / "w.safetensors")
    path = lc.OnlineConfig("vit_b", "flowers").to_json()
    assert (path["dataset"], path["data_dir"], path["weights"]) == (str(tmp_path / "flowers"), None, "pretrained")


def test_progress_is_told_after_every_batch(tiny_cache, tmp_path):
    seen = []
    lc.train(tiny_cache, progress=seen.append, **train_options(tmp_path, "run", epochs=2, batch_size=8, val_fraction=0))
    assert seen == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])

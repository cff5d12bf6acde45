"""Training inside the backbone: against a bare loop on timm's model, resumed, evaluated, rebuilt, and refused."""

import copy
import json
import math
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

import losa_cache as lc
from losa_cache.backbone.weights import weights_hash
from losa_cache.calibrate import fit_encoding
from losa_cache.data.augment import BatchAugmentation
from losa_cache.files import with_seal
from losa_cache.inputs import open_inputs
from losa_cache.train.config import TrainConfig
from losa_cache.train.loop import lr_factor
from losa_cache.train.memory_check import require_memory
from losa_cache.train.online import OnlineSource
from losa_cache.train.pixels import PixelSource
from losa_cache.train.sampler import epoch_requests, requests_in_order
from losa_cache.tuned.build import new_tuned
from losa_cache.tuned.rebuild import trunk_of
from losa_cache.tuned.spec import METHODS, SIDES, Method, load_method, parse_method
from losa_cache.tuned.trunk import Trunk
from tests.conftest import results, tiny_backbone, tiny_samples
from tests.data.videos import write_video
from tests.train.test_stopping import interrupting

CPU = torch.device("cpu")
ONLINE = lc.OnlineConfig("tiny0", "tiny", precision="float32", workers=1)
OPTIONS = {"epochs": 2, "lr": 1e-3, "batch_size": 8, "val_fraction": 0.3, "device": "cpu"}
UNFREEZING = ("full", "last:2", "attention", "mlp", "bitfit", "norm")
TRUNKS = {
    "cls": {},
    "average": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 3},
    "attention pool": {"class_token": False, "global_pool": "map"},
}


def trained(method, path, *, backbone=None, dataset=None, online=ONLINE, **options):
    given = {"backbone": backbone or tiny_backbone(), "dataset": dataset or tiny_samples()}
    return lc.train(online=online, method=method, out=path, **given, **OPTIONS | options)


def arguments(backbone, **changed):
    sizes = {"tokens": backbone.tokens, "width": backbone.width}
    return {"side": "linear", "depth": 1, "rank": 0, "classes": 3, "seed": 0, **sizes, **changed}


def images(samples):
    """All images of a data set, in the order of its samples."""
    inputs = open_inputs(tiny_backbone(), samples, precision="float32", device=CPU)
    with closing(PixelSource(inputs, workers=1)) as source:
        (batch,) = source.batches(requests_in_order(np.arange(len(samples)), len(samples)))
    return batch.blocks[0], batch.labels, batch.ids


def test_full_fine_tuning_is_a_bare_loop_on_timms_model(tmp_path):
    found = trained("full", tmp_path / "run", val_fraction=0, weight_decay=0.1, label_smoothing=0.1, clip_grad=0.5)
    model = tiny_backbone().model.requires_grad_(True)
    pixels, labels, _ = images(tiny_samples())
    torch.manual_seed(0)
    head = torch.nn.Linear(32, 3)
    torch.nn.init.trunc_normal_(head.weight, std=0.01)
    torch.nn.init.zeros_(head.bias)
    weights = [*model.parameters(), *head.parameters()]
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": 0.1},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer, step = torch.optim.AdamW(groups), 0
    for epoch in range(2):
        for request in epoch_requests(np.arange(23), batch_size=8, seed=0, epoch=epoch):
            for group in groups:
                group["lr"] = 1e-3 * lr_factor(step, total=6, warmup=1)
            logits = head(model.forward_head(model.forward_features(pixels[request.samples]), pre_logits=True))
            F.cross_entropy(logits, labels[request.samples], label_smoothing=0.1).backward()
            torch.nn.utils.clip_grad_norm_(weights, 0.5)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    ours = dict(found.adapter.trunk.named_parameters())
    for name, theirs in model.named_parameters():
        torch.testing.assert_close(ours[name], theirs, rtol=1e-3, atol=2e-5, msg=name)
    torch.testing.assert_close(found.adapter.adapter.classifier.weight, head.weight, rtol=1e-3, atol=2e-5)


WANTED = {
    "full": lambda name: True,
    "last:2": lambda name: name.startswith(("blocks.2.", "blocks.3.", "norm.")),
    "attention": lambda name: ".attn." in name,
    "mlp": lambda name: ".mlp." in name,
    "bitfit": lambda name: name.endswith("bias"),
    "norm": lambda name: "norm" in name,
}


@pytest.mark.parametrize("method", UNFREEZING)
def test_exactly_what_a_method_trains_changes(method, tmp_path):
    backbone = tiny_backbone()
    frozen, before = backbone.weights, copy.deepcopy(backbone.model.state_dict())
    run = trained(method, tmp_path / "run", backbone=backbone, epochs=1)
    after = run.adapter.trunk.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {name for name in before if WANTED[method](name)}
    assert f"random:sha256:{weights_hash(backbone.model)}" == frozen  # what was given stays as it is
    assert not any(own.requires_grad for own in backbone.model.parameters())
    config = json.loads((run.run / "adapter/config.json").read_text())
    assert config["cache"]["fields"]["backbone"]["weights"] == frozen
    assert Method(**config["method"]) == parse_method(method)
    stored = load_file(run.run / "adapter/adapter.safetensors")
    assert {name.removeprefix("trunk.") for name in stored if name.startswith("trunk.")} == moved
    assert run.parameters == {"backbone": sum(before[name].numel() for name in moved), "classifier": 99}


@pytest.mark.parametrize(
    ("method", "trunk"), [*(("full", trunk) for trunk in TRUNKS), ("bitfit", "average"), ("mlp", "cls")]
)
def test_a_run_is_evaluated_and_rebuilt_as_it_was_trained(method, trunk, tmp_path):
    backbone = tiny_backbone(**TRUNKS[trunk])
    run = trained(method, tmp_path / "run", backbone=backbone, epochs=1)
    again = lc.evaluate_run(run.run, backbone=backbone, dataset=tiny_samples(), device="cpu")
    assert again["loss"] == pytest.approx(run.metrics["val_loss"], rel=1e-5)
    test = tiny_samples(17, split="test")
    figures = lc.evaluate_run(run.run, split="test", backbone=backbone, dataset=test, device="cpu")
    pixels, labels, _ = images(test)
    with torch.no_grad():
        logits = run.adapter.eval()([pixels])
        assert figures["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        model = lc.load_adapter(run.run, device="cpu")
        changed = trunk_of(backbone, model)
        found = model(changed.outputs(pixels, model.points, compute=torch.float32))
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)
        around = model.around(changed.tail, tokens=changed.tokens)
        torch.testing.assert_close(around([*changed.outputs(pixels, model.points, compute=torch.float32)]), found)
        plain = model(backbone.outputs(pixels, model.points, compute=torch.float32))
        assert not torch.allclose(plain, logits, atol=1e-4)
    assert changed.weights == backbone.weights
    with pytest.raises(lc.UserError, match="does not fit backbone .tiny0.: blocks.2.* is only in one of them"):
        trunk_of(tiny_backbone(depth=2, **TRUNKS[trunk]), model)


@pytest.mark.parametrize("decoded", [12, pytest.param(28, marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_to_the_same_numbers(decoded, tmp_path):
    given = {"backbone": tiny_backbone(), "device": "cpu"}
    whole = trained("full", tmp_path / "whole", batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        trained("full", tmp_path / "stopped", batch_size=3, dataset=interrupting(tiny_samples(), decoded))
    resumed = lc.resume(tmp_path / "stopped", dataset=tiny_samples(), **given)
    ours, theirs = whole.adapter.trained_state(), resumed.adapter.trained_state()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert results(tmp_path / "whole") == results(tmp_path / "stopped")


def test_a_run_says_where_it_is_and_how_it_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "losa_cache")
    with pytest.raises(KeyboardInterrupt):
        trained("adapter", None, batch_size=3, dataset=interrupting(tiny_samples(), 12))
    assert "run: runs/tiny-adapter-1." in caplog.text
    assert "losa-cache train --resume runs/tiny-adapter-1 goes on" in caplog.text
    again = {"backbone": tiny_backbone(), "dataset": tiny_samples(), "device": "cpu"}
    lc.resume("runs/tiny-adapter-1", **again)
    assert "finished already" not in caplog.text
    lc.resume("runs/tiny-adapter-1", **again)
    assert "'runs/tiny-adapter-1' is finished already" in caplog.text
    lc.evaluate_run("runs/tiny-adapter-1", **again)
    assert "--split names another split" in caplog.text


def test_checkpointing_changes_no_number_and_keeps_less(tmp_path):
    plain = trained("attention", tmp_path / "plain", epochs=1)
    less = trained("attention", tmp_path / "less", epochs=1, grad_checkpointing=True)
    ours, theirs = plain.adapter.trained_state(), less.adapter.trained_state()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-7)
    kept = {}
    for on in (False, True):
        backbone = tiny_backbone()
        tuned = new_tuned(backbone, parse_method("full"), arguments(backbone), device=CPU, grad_checkpointing=on)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            tuned([torch.zeros(8, *backbone.input.shape)]).sum()
        kept[on] = sum(saved)
    assert kept[True] < kept[False] / 2


def test_the_trunk_neither_drops_nor_skips_in_training():
    backbone = tiny_backbone(drop_path_rate=0.5, proj_drop_rate=0.5)
    tuned = new_tuned(backbone, parse_method("full"), arguments(backbone), device=CPU).train()
    pixels = torch.rand(4, *backbone.input.shape)
    first, second = tuned([pixels]), tuned([pixels])
    assert torch.equal(first, second)
    assert first.requires_grad
    assert tuned.adapter.training


def test_augmented_images_are_those_of_an_online_run():
    """The last block that the frozen backbone gives of them: the source of online runs on the same requests."""
    inputs = open_inputs(tiny_backbone(), tiny_samples(), precision="float32", device=CPU)
    batch_augmentation = BatchAugmentation(mixup=0.3, classes=3)
    options = {"workers": 1, "augment": "rand-m9-mstd0.5-inc1", "batch_augmentation": batch_augmentation}
    encoding, requests = fit_encoding(inputs, workers=1), epoch_requests(np.arange(23), batch_size=8, seed=0, epoch=1)
    with (
        closing(OnlineSource(inputs, ["block.4"], encoding, inputs.manifest.points, **options)) as online,
        closing(PixelSource(inputs, **options)) as pixels,
    ):
        for ours, theirs in zip(pixels.batches(requests), online.batches(requests), strict=True):
            assert ours.ids == theirs.ids
            assert torch.equal(ours.labels, theirs.labels)
            (found,) = inputs.backbone.outputs(ours.blocks[0], ["block.4"], compute=torch.float32)
            assert torch.equal(found, theirs.blocks[0])


@pytest.mark.parametrize("decoder", ["conv", "linear"])
def test_maps_are_learned_through_the_backbone(decoder, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in (samples := tiny_samples()).ids:
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 3, (8, 8), dtype=np.uint8)).save(
            masks / f"{name}.png"
        )
    online = replace(ONLINE, targets_from=str(masks))
    run = trained(
        "attention", tmp_path / "run", task="segmentation", decoder=decoder, online=online, dataset=samples, epochs=3
    )
    lines = results(run.run)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    found = lc.evaluate_run(run.run, backbone=tiny_backbone(), dataset=samples, device="cpu")
    assert found["miou"] == pytest.approx(lines[-1]["val_miou"], rel=1e-5)
    assert [*run.parameters] == ["backbone", "classifier"]


def test_videos_are_learned_through_the_backbone(tmp_path):
    for label, first in (("low", 0), ("high", 2048)):
        for number in range(3):
            write_video(tmp_path / "v" / label / f"{number}.mp4", 12, first=first + 40 * number)
    online = lc.OnlineConfig("vivit_digits", str(tmp_path / "v"), clips=2, precision="float32")
    options = {"epochs": 1, "lr": 1e-3, "batch_size": 4, "val_fraction": 0.3, "device": "cpu"}
    run = lc.train(online=online, method="norm", out=tmp_path / "run", **options)
    found = lc.evaluate_run(run.run, device="cpu")
    assert found["loss"] == pytest.approx(run.metrics["val_loss"], rel=1e-4)


def test_names_of_side_networks_set_the_side():
    for name, side in SIDES.items():
        config = TrainConfig(method=name)
        assert (config.side, config.method, config.trains) == (side, None, None)
    config = TrainConfig(method="full")
    assert (config.side, config.head, config.trained, config.peak_lr) == ("linear", "last", "full", 1e-4)
    assert replace(config, epochs=2).trains == Method("full")
    assert {parse_method(name).name for name in METHODS} == {*METHODS}


def test_what_cannot_be_is_one_sentence(tiny_cache, tmp_path):
    for options, told in (
        ({"method": "lorra"}, "unknown method 'lorra': choose one of"),
        ({"method": "lora:qkv@4"}, "write lora:qkv, and --rank 4 beside it"),
        ({"method": "side-mlp"}, "'side-mlp', which is a side network: use --side mlp"),
        ({"method": "fusion"}, "'fusion', which is a side network: use --side fusion"),
        ({"method": "last:0"}, "write last or last:K"),
        ({"method": "bitfit", "rank": 4}, "rank is 4, but method 'bitfit' has no inner width"),
        ({"method": "lora", "rank": 0}, "rank is 0: it must lie between 1 and 1048576"),
        ({"method": "lora", "rank": 10**7}, "rank is 10000000: it must lie between 1 and 1048576"),
        ({"method": "lora", "rank": "8"}, "rank is '8': it must be a whole number"),
        ({"method": "full", "side": "mlp"}, "side is 'mlp' and method is 'full'"),
        ({"method": "lst", "side": "mlp"}, "side is 'mlp' and method is 'lst'"),
        ({"method": "full", "start": "embedding"}, "start is 'embedding', but method 'full' .*: leave it out"),
        ({"method": "lora", "layers": "1"}, "layers is '1', but method 'lora' trains inside the backbone"),
        ({"method": "full", "dropout": 0.5}, "dropout is 0.5, but method 'full' trains inside the backbone"),
        ({"grad_checkpointing": True}, "grad-checkpointing is for what trains inside the backbone"),
        ({"method": "losa", "grad_checkpointing": True}, "grad-checkpointing is for what trains inside"),
    ):
        with pytest.raises(lc.UserError, match=told):
            TrainConfig(**options)
    for options, told in (
        ({"cache": tiny_cache}, "--method full trains inside the backbone, which a cache cannot replace: use --online"),
        ({"cache": tiny_cache, "online": ONLINE}, "no cache serves them; leave out --cache"),
        ({"cache": tiny_cache, "online": replace(ONLINE, share=0.5)}, "--mixed takes a part of it from a cache"),
        ({"online": replace(ONLINE, tap="mlp")}, "tap is 'mlp', but --method full reads what the last block gives"),
        ({"online": replace(ONLINE, precision="int8")}, "precision is 'int8'.*choose bfloat16 or float32"),
    ):
        with pytest.raises(lc.UserError, match=told):
            lc.train(method="full", out=tmp_path / "no", device="cpu", **options)
    with pytest.raises(lc.UserError, match="head is 'all', but method 'full' trains inside .*: leave it out"):
        trained("full", tmp_path / "no", head="all")
    with pytest.raises(lc.UserError, match="method is last:9, and backbone 'tiny0' has 4 blocks"):
        trained("last:9", tmp_path / "no")
    streamed = tiny_backbone().to("cpu", budget=10**7)
    with pytest.raises(lc.UserError, match="too large for cpu, and method full trains inside it"):
        trained("full", tmp_path / "no", backbone=streamed)
    assert not (tmp_path / "no").exists()


def test_a_cache_is_no_place_to_evaluate_it(tiny_cache, tmp_path):
    run = trained("norm", tmp_path / "run", val_fraction=0, epochs=1).run
    inside = "norm trained inside the backbone, and these are outputs of the frozen one"
    with pytest.raises(lc.UserError, match=inside):
        lc.evaluate_run(run, cache=tiny_cache.path, device="cpu")
    with pytest.raises(lc.UserError, match=inside):
        lc.load_adapter(run, cache=tiny_cache, device="cpu")
    with pytest.raises(lc.UserError, match="held nothing out: name a split of its data set with --split"):
        lc.evaluate_run(run, device="cpu")
    with pytest.raises(lc.UserError, match="name the run that it is of"):
        lc.evaluate_run(run / "adapter", cache=tiny_cache.path, device="cpu")
    with pytest.raises(lc.UserError, match=r"trained inside the backbone \(norm\), so no test cache serves it"):
        lc.compare(run, device="cpu")


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    run = trained("norm", tmp_path / "run", epochs=1).run
    path = run / "adapter/config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if name != "seal"}
    for method, told in (
        ({"name": "nothing", "variant": None, "rank": 0}, "unknown method 'nothing'"),
        ({"name": "last", "variant": "deep", "rank": 0}, "write last or last:K"),
        ({"name": "norm", "variant": None, "rank": 3}, "has no inner width"),
        ({"name": "norm", "alpha": 1}, "alpha"),
    ):
        path.write_text(json.dumps(with_seal(config | {"method": method})))
        with pytest.raises(lc.UserError, match=told):
            lc.load_adapter(run, device="cpu")
    path.write_text(json.dumps(with_seal({name: value for name, value in config.items() if name != "method"})))
    with pytest.raises(lc.UserError, match="its tensors are not those of its config"):
        lc.load_adapter(run, device="cpu")


def test_a_file_of_another_place_is_refused(tmp_path):
    """Both methods have the same shapes, one beside the MLP and one behind it."""
    run = trained("adaptformer", tmp_path / "run", epochs=1).run
    path = run / "adapter/config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if name != "seal"}
    other = {"name": "adapter", "variant": "pfeiffer", "rank": 8}
    path.write_text(json.dumps(with_seal(config | {"method": other})))
    with pytest.raises(lc.UserError, match="adapter:pfeiffer has trained does not fit .*blocks.0.mlp.behind"):
        trunk_of(tiny_backbone(), lc.load_adapter(run, device="cpu"))


def test_a_batch_without_room_names_what_would_fit():
    backbone = tiny_backbone()
    tuned = new_tuned(backbone, parse_method("full"), arguments(backbone), device=CPU)
    shape = (1, *backbone.input.shape)
    with pytest.raises(lc.UserError, match=r"a batch of 1000000000 keeps .*: --batch-size \d+ would fit"):
        require_memory(tuned, shape, torch.float32, batch_size=10**9, autocast=None)
    require_memory(tuned, shape, torch.float32, batch_size=8, autocast=None)


def test_a_card_says_what_was_trained_inside(tmp_path):
    run = trained("bitfit", tmp_path / "run", epochs=1).run
    card = (run / "adapter/README.md").read_text()
    assert "What `bitfit` has trained inside tiny0 on tiny, by losa-cache: BitFit (Ben Zaken et al., ACL 2022)." in card
    assert "side network" not in card
    assert "lc.AdaptedModel(backbone" in card
    assert "blocks that are read" not in card


COUNTS = {"full": 85_798_656, "bitfit": 102_912, "norm": 38_400}
"""Of ViT-B/16 at 224 pixels: timm's own count without the head; BitFit's 0.10 M (Table 1 of LoSA); 25 norms."""


@pytest.mark.parametrize("method", COUNTS)
def test_the_counts_are_those_of_the_publications(method):
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0).requires_grad_(False)
    load_method(method).insert(Trunk("b", model, 768, 1, (14, 14)), rank=0, variant=None)
    assert sum(own.numel() for own in model.parameters() if own.requires_grad) == COUNTS[method]


def test_seconds_say_what_an_epoch_went_into(tmp_path):
    found = trained("full", tmp_path / "run", epochs=1).metrics
    assert {"train_seconds_decode", "train_seconds_compute"} <= found.keys()
    assert "train_seconds_backbone" not in found
    assert "side network" not in found["limiter"].partition("(")[0]
    assert math.isfinite(found["train_loss"])

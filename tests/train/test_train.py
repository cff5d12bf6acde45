"""Training from a cache: the same numbers as with the backbone, the same after a stop, and nothing loaded in vain."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import losa_cache as lc
from losa_cache.extract.extract import extract
from losa_cache.files import with_seal
from losa_cache.points import tapped_points
from losa_cache.train.cached import CachedSource
from losa_cache.train.compatible import misfit
from losa_cache.train.sampler import requests_in_order
from tests.conftest import results, tiny_backbone, tiny_samples
from tests.forked import Forked

CPU = torch.device("cpu")


def test_batches_come_in_the_order_asked_for_with_their_labels_and_ids(tiny_cache):
    rows = np.random.default_rng(0).permutation(23)
    source = CachedSource(tiny_cache, tapped_points("block", [2, 4]), CPU)
    everything = CachedSource(tiny_cache, tapped_points("block", [2, 4]), CPU)
    whole = next(iter(everything.batches(requests_in_order(np.arange(23), 23))))
    for _ in range(2):  # buffers are used again
        at = 0
        requests = requests_in_order(rows, 4)
        for batch, chosen in zip(source.batches(requests), [r.samples for r in requests], strict=True):
            assert batch.ids == [tiny_cache.ids[row] for row in chosen]
            assert batch.labels.tolist() == tiny_cache.labels[chosen].tolist()
            for block, reference in zip(batch.blocks, whole.blocks, strict=True):
                assert torch.equal(block, reference[chosen])
            at += len(chosen)
        assert at == 23
    source.close()
    everything.close()


@pytest.mark.parametrize("side", ["mlp", "ladder"])
def test_the_other_side_networks_train_and_are_read_back(tiny_cache, tmp_path, side):
    run = lc.train(tiny_cache, side=side, rank=4, epochs=4, lr=0.02, val_fraction=0.3, out=tmp_path / "r", device="cpu")
    first, last = (json.loads(line)["train_loss"] for line in (run.run / "metrics.jsonl").read_text().splitlines()[::3])
    assert last < first
    held_out = lc.evaluate_run(run.run)
    assert held_out["samples"] == 7
    assert held_out["loss"] == pytest.approx(run.metrics["val_loss"], rel=1e-5)


def test_a_run_leaves_what_it_says(tiny_cache, tmp_path):
    seen = []
    result = lc.train(
        tiny_cache, rank=4, epochs=3, val_fraction=0.3, out=tmp_path / "run", device="cpu", report=seen.append
    )
    assert sorted(p.name.split(".")[0] for p in result.run.iterdir()) == [
        "adapter", "checkpoint", "config", "events", "metrics",
    ]  # fmt: skip
    written = {path.name for path in (result.run / "adapter").iterdir()}
    assert written >= {"adapter.safetensors", "config.json", "metrics.json"}
    lines = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    assert lines == seen
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert {"train_loss", "val_loss", "val_top1", "val_top5", "train_seconds"} <= lines[0].keys()
    events = EventAccumulator(str(result.run)).Reload()
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx([line["train_loss"] for line in lines])
    config = json.loads((result.run / "adapter/config.json").read_text())
    assert config["cache"]["identity"] == tiny_cache.manifest.identity
    tensors = load_file(result.run / "adapter/adapter.safetensors")
    assert sum(t.numel() for t in tensors.values()) == sum(result.parameters.values())
    (measured,) = json.loads((result.run / "adapter/metrics.json").read_text())
    assert measured == {
        "on": "tiny", "split": "held out of training", "samples": 7,
        "loss": seen[-1]["val_loss"], "top1": seen[-1]["val_top1"], "top5": seen[-1]["val_top5"],
    }  # fmt: skip


class Stop(Exception):
    pass


def stop_after(epoch):
    def report(metrics):
        if metrics["epoch"] == epoch:
            raise Stop

    return report


def test_a_stopped_run_resumes_bit_identically(tiny_cache, tmp_path):
    options = {"rank": 4, "epochs": 4, "lr": 0.01, "batch_size": 8, "val_fraction": 0.3, "device": "cpu"}
    lc.train(tiny_cache, out=tmp_path / "whole", **options)
    with pytest.raises(Stop):
        lc.train(tiny_cache, out=tmp_path / "stopped", report=stop_after(2), **options)
    assert not (tmp_path / "stopped" / "adapter/adapter.safetensors").exists()
    with open(tmp_path / "stopped" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "train_lo')  # as a kill in the middle of a line leaves it
    lc.resume(tmp_path / "stopped", device="cpu")
    whole, stopped = (load_file(tmp_path / name / "adapter/adapter.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert results(tmp_path / "whole") == results(tmp_path / "stopped")


def test_a_run_never_loads_timm_or_torchvision(tiny_cache, tmp_path):
    code = (
        "import sys\n"
        "for name in list(sys.modules):\n"
        "    if name.split('.')[0] in ('losa_cache', 'timm', 'torchvision', 'sklearn'): del sys.modules[name]\n"
        "import losa_cache as lc\n"
        f"r = lc.train({str(tiny_cache.path)!r}, rank=2, epochs=1, out={str(tmp_path / 'run')!r})\n"
        "lc.evaluate_run(r.run)\n"
        "sys.argv = ['losa-cache', 'inspect', sys.argv[1]]\n"
        "from losa_cache import cli\n"
        "try: cli.main()\n"
        "except SystemExit as done: assert not done.code\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'timm', 'torchvision', 'sklearn'}))\n"
    )
    done = Forked("-c", code, tiny_cache.path).wait()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_evaluation_equals_a_plain_count(tiny_cache, tmp_path):
    run = lc.train(tiny_cache, rank=4, epochs=2, val_fraction=0.3, out=tmp_path / "run", device="cpu")
    found = lc.evaluate_run(run.run, cache=tiny_cache.path, device="cpu")
    source = CachedSource(tiny_cache, tapped_points("block", [1, 2, 3, 4]), CPU)
    with torch.no_grad():
        batch = next(iter(source.batches(requests_in_order(np.arange(23), 23))))
        logits = run.adapter.eval()(batch.blocks)
    source.close()
    assert found["samples"] == 23
    assert found["top1"] == pytest.approx(100 * (logits.argmax(1) == batch.labels).float().mean().item())
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, batch.labels).item(), rel=1e-5)
    assert found["top5"] == 100


def test_without_a_held_out_cache_the_runs_own_held_out_part_is_evaluated(tiny_cache, tmp_path):
    run = lc.train(tiny_cache, side="linear", epochs=1, val_fraction=0.3, out=tmp_path / "run")
    assert lc.evaluate_run(run.run)["samples"] == 7
    nothing = lc.train(tiny_cache, side="linear", epochs=1, val_fraction=0, out=tmp_path / "none")
    with pytest.raises(lc.UserError, match="held nothing out"):
        lc.evaluate_run(nothing.run)


def test_a_held_out_cache_of_the_same_data_set_is_found(tiny_cache, tmp_path):
    extract(tiny_backbone(), tiny_samples(9, split="test"), precision="bfloat16", out=tmp_path / "test.zarr")
    run = lc.train(tiny_cache, rank=2, epochs=1, out=tmp_path / "run")
    found = lc.evaluate_run(run.run)
    assert (found["split"], found["samples"]) == ("test", 9)


def test_of_two_folders_with_the_same_classes_the_runs_own_is_its_test(tmp_path):
    draw = np.random.default_rng(0)
    for name, count in (("ours", 4), ("theirs", 2)):
        for split, kind, number in product(("train", "test"), "ab", range(count)):
            path = tmp_path / name / split / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (28, 28, 3), np.uint8)).save(path)
    made = [
        lc.extract("vit_digits", "folder", data_dir=tmp_path / name, split=split, out=tmp_path / f"{name}-{split}.zarr")
        for name, split in (("ours", "train"), ("ours", "test"), ("theirs", "test"))
    ]
    run = lc.train(made[0], side="linear", epochs=1, out=tmp_path / "run")
    assert lc.evaluate_run(run.run)["on"] == str(made[1].path)


def test_an_adapter_is_refused_by_a_cache_it_does_not_belong_to(tiny_cache, tmp_path):
    run = lc.train(tiny_cache, rank=2, epochs=1, out=tmp_path / "run").run
    other = extract(tiny_backbone(seed=1), tiny_samples(), precision="float32", out=tmp_path / "o.zarr")
    fewer = extract(tiny_backbone(), tiny_samples(), precision="float32", layers=2, out=tmp_path / "f.zarr")
    with pytest.raises(lc.UserError, match=r"does not fit cache .*backbone\.name .*backbone\.weights"):
        lc.evaluate_run(run, cache=other.path)
    with pytest.raises(lc.UserError, match=r"layers \(\[1, 3\] are not cached\)"):
        lc.evaluate_run(run, cache=fewer.path)
    config = json.loads((run / "adapter/config.json").read_text())
    assert misfit(config, tiny_cache.manifest, ["a", "b", "c"]) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("cache"), "lacks cache"),
        (lambda c: c["adapter"].update(rank=3), "cannot be loaded"),
        (lambda c: c["adapter"].update(surprise=3), "surprise"),
    ],
)
def test_an_altered_adapter_is_refused(tiny_cache, tmp_path, change, message):
    run = lc.train(tiny_cache, rank=2, epochs=1, out=tmp_path / "run").run
    config = json.loads((run / "adapter/config.json").read_text())
    change(config)
    (run / "adapter/config.json").write_text(json.dumps(config))
    with pytest.raises(lc.UserError, match=message):
        lc.evaluate_run(run)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_run_may_hold_out_more_than_it_trains_on(tmp_path, precision):
    """Evaluation then asks for larger batches than training, and without gradients."""
    cache = extract(tiny_backbone(), tiny_samples(), precision=precision, out=tmp_path / "c.zarr")
    run = lc.train(cache, rank=2, epochs=2, val_fraction=0.7, out=tmp_path / "run", device="cpu")
    assert lc.evaluate_run(run.run, device="cpu")["samples"] == 16


def test_a_subset_of_layers_trains_and_evaluates(tiny_cache, tmp_path):
    run = lc.train(tiny_cache, rank=2, layers="2", epochs=1, val_fraction=0.3, out=tmp_path / "run")
    assert json.loads((run.run / "adapter/config.json").read_text())["layers"] == [2, 4]
    assert lc.evaluate_run(run.run)["samples"] == 7


def test_resume_refuses_a_cache_that_changed(tiny_cache, tmp_path):
    with pytest.raises(Stop):
        lc.train(tiny_cache, rank=2, epochs=2, out=tmp_path / "run", report=stop_after(1))
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    described["fields"]["backbone"]["weights"] = "sha256:0"
    (tmp_path / "run" / "config.json").write_text(json.dumps(described))
    with pytest.raises(lc.UserError, match="was altered since it was written"):
        lc.resume(tmp_path / "run")
    described.pop("seal")
    (tmp_path / "run" / "config.json").write_text(json.dumps(with_seal(described)))
    with pytest.raises(lc.UserError, match=r"began with other data: it differs in backbone\.weights"):
        lc.resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 33}, "rank is 33: .* 32"),
        ({"side": "lora"}, "unknown side network 'lora'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": -1.0}, "lr is -1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"layers": "7"}, "7 layers cannot be chosen: there are 4"),
        ({"val_fraction": 1.0}, "val-fraction is 1"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ],
)
def test_bad_options_are_refused_before_a_directory_is_made(tiny_cache, tmp_path, options, message):
    with pytest.raises(lc.UserError, match=message):
        lc.train(tiny_cache, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.model.blocks[0].mlp.fc2.bias[0] = float("nan")
    cache = extract(backbone, tiny_samples(), out=tmp_path / "c.zarr")
    assert cache.manifest.non_finite > 0
    with pytest.raises(lc.UserError, match="the loss of epoch 1 is nan, and [0-9,]+ values that the backbone gave"):
        lc.train(cache, rank=2, epochs=2, head="last", out=tmp_path / "run")
    with pytest.raises(lc.UserError, match="the features of sample '[^']+' are infinite or not numbers"):
        lc.train(cache, rank=2, epochs=2, out=tmp_path / "all")


@pytest.mark.slow
def test_losa_beats_the_linear_probe_and_the_probe_is_an_honest_one(digits, tmp_path):
    """On the embedded default: held-out images of classes that the backbone never saw."""
    top1 = {}
    for side in ("linear", "losa"):
        run = lc.train(
            digits["train"], side=side, rank=16, epochs=20, val_fraction=0, out=tmp_path / side, device="cpu"
        )
        top1[side] = lc.evaluate_run(run.run, cache=digits["test"], device="cpu")["top1"]
    features, labels = {}, {}
    for split in ("train", "test"):
        cache = lc.open_cache(digits[split])
        source = CachedSource(cache, tapped_points("block", [8]), CPU)
        batch = next(iter(source.batches(requests_in_order(cache.samples, len(cache.samples)))))
        tail = lc.FrozenTail(cache.manifest.tail, cache.tail_tensors())
        features[split], labels[split] = tail(batch.blocks[-1].float()).numpy(), batch.labels.numpy()
        source.close()
    probe = LogisticRegression(max_iter=5000).fit(features["train"], labels["train"])
    assert top1["linear"] > 100 * probe.score(features["test"], labels["test"]) - 1.0
    assert top1["losa"] > top1["linear"] + 1.0

"""``train --auto``: its search against trials trained by hand, its run against the same run, and what it refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import losa_cache as lc
from losa_cache.errors import UserError
from losa_cache.sweep.engine.auto import search, split, train_auto
from losa_cache.sweep.engine.cross_validation import cross_validate
from losa_cache.train.config import TrainConfig
from losa_cache.train.loop import lr_factor, make_optimizer
from losa_cache.train.placement import Placement
from losa_cache.train.sampler import epoch_requests
from losa_cache.train.saved import new_adapter
from losa_cache.train.training_data import from_cache
from tests.conftest import losa_cache

CPU = torch.device("cpu")
CONFIG = TrainConfig(
    epochs=2, batch_size=8, rank=3, val_fraction=0.2, head="last", label_smoothing=0.0, weight_decay=1e-4
)
GRID = {"lr": (0.01, 0.1), "weight_decay": (0.0, 0.3)}


def test_each_split_is_trained_without_what_it_holds_out_and_every_sample_is_judged_once(tiny_cache):
    splits = split(tiny_cache, CONFIG)
    judges = np.concatenate([own.held_out for own in splits])
    assert sorted(judges) == list(range(23))
    settings = [replace(CONFIG, lr=0.03), replace(CONFIG, lr=0.1, weight_decay=0.3)]
    shares = []
    whole = replace(CONFIG, val_fraction=0.0)
    with from_cache(tiny_cache, whole, Placement(CPU, "memory"), passes=9) as data:
        found = cross_validate(data, settings, splits, shares.append)
        assert shares == [0.5, 1.0]  # all ten trials in one pass
        losses = []
        for own in splits:
            adapter = new_adapter(data.manifest, data.tail, settings[1])
            optimizer = make_optimizer(adapter, settings[1])
            for epoch in range(2):
                requests = epoch_requests(data.chosen.train, batch_size=8, seed=0, epoch=epoch)
                for request, batch in zip(requests, data.source.batches(requests), strict=True):
                    mine = ~np.isin(request.samples, own.held_out)
                    optimizer.zero_grad()
                    F.cross_entropy(adapter([block[mine] for block in batch.blocks]), batch.labels[mine]).backward()
                    torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
                    for group in optimizer.param_groups:
                        group["lr"] = 0.1 * lr_factor(request.step, total=6, warmup=1)
                    optimizer.step()
            request = replace(requests[0], samples=own.held_out, epoch=None)
            (batch,) = data.source.batches([request])
            logits = adapter(batch.blocks).detach()
            temperatures = 2 ** torch.linspace(-3, 3, 25)
            at_each = torch.stack([F.cross_entropy(logits / t, batch.labels, reduction="none") for t in temperatures])
            losses.append(at_each[at_each.mean(1).argmin()])
    np.testing.assert_allclose(found[1].losses, torch.cat(losses).numpy(), rtol=1e-3, atol=1e-4)
    assert found[1].loss == pytest.approx(found[1].losses.mean())
    assert found[1].value == pytest.approx(100 * found[1].each.mean())


@pytest.mark.parametrize("side", ["losa", "linear"])  # side by side, and one by one
def test_on_given_ids_a_setting_comes_to_what_its_own_run_does(side, tiny_cache, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(f"image-{n:03d}" for n in range(2, 12)))
    config = replace(CONFIG, side=side, val_ids=str(ids))
    found = search(tiny_cache, config, GRID, placement=Placement(CPU))
    assert (found.folds, found.choice.images, found.trained_on) == (1, 10, 13)
    assert [own.options for own in found.tried] == [
        {"lr": a, "weight_decay": b} for a in (0.01, 0.1) for b in (0.0, 0.3)
    ]
    alone = lc.train(tiny_cache, config=config, **found.tried[2].options, out=tmp_path / "alone", device="cpu").metrics
    assert 0 < found.tried[2].loss <= alone["val_loss"] * (1 + 1e-4)  # at the best temperature
    assert found.tried[2].value == pytest.approx(alone["val_top1"])


def test_the_chosen_options_are_trained_on_all_samples(tiny_cache, tmp_path):
    said = []
    options = {"config": CONFIG, "grid": GRID, "device": "cpu"}
    result = train_auto(tiny_cache, **options, out=tmp_path / "auto", told=said.append)
    written = json.loads((tmp_path / "auto" / "auto.json").read_text())
    best = min(written["choice"]["level"], key=lambda place: written["settings"][place]["loss"])
    assert written["chosen"] == result.found.options == written["settings"][best]["options"]
    assert written["choice"]["images"] == 23
    assert said[0] == "searching 4 settings in 5 splits each: nothing is kept until the search is over."
    assert written["sure"] in said[1]
    whole = {"config": replace(CONFIG, val_fraction=0.0), "device": "cpu"}
    same = lc.train(tiny_cache, **whole, **written["chosen"], out=tmp_path / "same")
    ours, theirs = (load_file(run / "adapter/adapter.safetensors") for run in (result.trained.run, same.run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert lc.resume(tmp_path / "auto", device="cpu").metrics["epoch"] == 2
    with pytest.raises(UserError, match="exists: continue it with --resume"):
        train_auto(tiny_cache, **options, out=tmp_path / "auto", told=said.append)
    assert len(said) == 2  # before the search


def test_a_setting_whose_loss_is_no_number_is_not_chosen(tiny_cache):
    found = search(tiny_cache, CONFIG, {"lr": (1e30, 0.01)}, placement=Placement(CPU))
    assert (found.tried[0].value, found.options) == (None, {"lr": 0.01})
    with pytest.raises(UserError, match="the loss of every setting"):
        search(tiny_cache, CONFIG, {"lr": (1e30, 2e30)}, placement=Placement(CPU))


@pytest.mark.parametrize(
    ("options", "grid", "said"),
    [
        ({}, {"lr": (0.1,)}, "nothing to choose between"),
        ({}, {"side": ("losa", "mlp")}, "cannot search side"),
        ({"val_fraction": 0.0}, GRID, "nothing is held out to choose by"),
        (
            {"limit": 3, "val_fraction": 0.4},
            GRID,
            "2 images held out cannot tell settings apart: a choice takes at least 5",
        ),
        ({"val_ids": "of_one_class.txt"}, GRID, "all 8 held-out images are of class 'a'"),
    ],
)
def test_what_cannot_work_is_one_sentence(options, grid, said, tiny_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_one_class.txt").write_text("\n".join(f"image-{n:03d}" for n in range(0, 23, 3)))
    with pytest.raises(UserError, match=said):
        search(tiny_cache, replace(CONFIG, **options), grid, placement=Placement(CPU))


def test_the_command_line_chooses_and_refuses_what_does_not_go_with_it(tiny_cache, tmp_path):
    arguments = ("train", "--auto", "--cache", str(tiny_cache.path), "--epochs", "1", "--lr", "0.03", "--device", "cpu")
    done = losa_cache(*arguments, "--out", "run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chosen"].keys() == {"weight_decay"}  # the rate was given
    assert "chosen: weight_decay" in done.stderr
    assert json.loads((tmp_path / "run" / "auto.json").read_text())["folds"] == 5
    failed = losa_cache(*arguments, "--online", cwd=tmp_path)
    assert (failed.returncode, failed.stderr) == (2, "error: --auto chooses from a cache: leave out --online.\n")
    failed = losa_cache("train", "--auto", "--resume", "run", cwd=tmp_path)
    assert (failed.returncode, failed.stderr) == (
        2,
        "error: --resume goes on with a run's own options: leave out --auto.\n",
    )


def test_a_setting_that_diverges_alone_is_no_choice_and_ends_no_search(tiny_cache):
    config = replace(CONFIG, side="linear", epochs=3)
    found = search(tiny_cache, config, {"lr": (1e-2, 1e36)}, placement=Placement(CPU))
    assert [own.value is None for own in found.tried] == [False, True]
    assert found.options == {"lr": 1e-2}

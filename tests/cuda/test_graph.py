"""Training steps as CUDA graphs: the very bits of eager steps."""

import gc
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import losa_cache as lc
from losa_cache.extract.extract import extract
from losa_cache.machine.capture import capture
from losa_cache.sidenet.backend import use_backend
from losa_cache.sidenet.stack import AdapterStack
from losa_cache.sweep.engine import cohort
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.space import Choices
from losa_cache.sweep.engine.sweep import Sweep, create_sweep
from losa_cache.tasks.classification import TASK
from losa_cache.train import loop
from losa_cache.train.batch import Batch
from losa_cache.train.graph import Replayed, map_tensors, recorder_for
from losa_cache.train.loop import make_optimizer
from losa_cache.train.placement import Placement
from losa_cache.train.stacked_adamw import StackedAdamW
from losa_cache.train.step import AdapterStep, StackStep
from tests.conftest import results, tiny_backbone, tiny_samples
from tests.train.test_graph import CONFIG, RATES, SIZES, Rows, Slots, adapter, batches, same, take
from tests.train.test_train import Stop, stop_after

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "predict:2"])
@pytest.mark.parametrize("residency", ["device", "memory", "disk"])
def test_a_run_ends_as_an_eager_one_bit_for_bit(residency, precision, tmp_path, monkeypatch, caplog):
    backbone = tiny_backbone(embed_dim=64)
    cache = extract(backbone, tiny_samples(61), precision=precision, out=tmp_path / "c.zarr", device="cuda")
    config = lc.TrainConfig(rank=4, epochs=4, lr=0.01, batch_size=8, val_fraction=0)

    def train(name):
        return lc.train(cache, config=config, residency=residency, out=tmp_path / name).adapter.state_dict()

    caplog.set_level("INFO", logger="losa_cache.train.graph")
    graphed = train("graphed")
    assert "replayed as a CUDA graph" in caplog.text
    monkeypatch.setattr(loop, "recorder_for", lambda device: None)
    eager = train("eager")
    assert all(torch.equal(value, eager[name]) for name, value in graphed.items())


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("residency", ["device", "memory"])
@pytest.mark.parametrize("head", ["last", "all"])
def test_a_run_by_kernels_is_replayed_and_ends_as_an_eager_one(
    head, residency, precision, tmp_path, monkeypatch, caplog
):
    backbone = tiny_backbone(embed_dim=64)
    cache = extract(backbone, tiny_samples(61), precision=precision, out=tmp_path / "c.zarr", device="cuda")
    config = lc.TrainConfig(rank=4, epochs=4, lr=0.01, batch_size=8, val_fraction=0, head=head)

    def train(name):
        with use_backend("triton"):
            return lc.train(cache, config=config, residency=residency, out=tmp_path / name).adapter.state_dict()

    caplog.set_level("INFO", logger="losa_cache.train.graph")
    graphed = train("graphed")
    assert "The training step is replayed as a CUDA graph" in caplog.text
    assert "not replayed" not in caplog.text
    monkeypatch.setattr(loop, "recorder_for", lambda device: None)
    eager = train("eager")
    assert all(torch.equal(value, eager[name]) for name, value in graphed.items())


def test_a_step_that_cannot_be_captured_is_taken_eagerly_and_leaves_the_device_usable(gpu):
    total = torch.zeros((), device=gpu)

    def work(blocks, labels):
        total.add_(blocks[0].sum())
        total.item()  # waits for the device, which a capture refuses

    replayed = Replayed("the work", recorder_for(gpu))
    ones = [torch.ones(4, 2, 2, device=gpu)]
    for _ in range(4):
        replayed(work, Batch(list(ones), torch.zeros(4, dtype=torch.int64, device=gpu), [], fixed=True))
    assert total.item() == 4 * 16
    assert replayed.why_eager
    torch.rand(3, device=gpu)  # the generator is no longer that of a capture


def test_a_graph_that_nobody_uses_any_more_spoils_no_capture(gpu):
    """It goes at the next collection, which the work asks for at nearly every allocation."""
    ring = [torch.cuda.CUDAGraph()]
    with capture(ring[0]):
        torch.zeros(1, device=gpu)
    ring.append(ring)
    rings, total, calls = [ring], torch.zeros((), device=gpu), []
    del ring

    def work(blocks, labels):
        calls.append([])
        if len(calls) == 2:  # the one that is captured
            rings.clear()
        held = [[at] for at in range(100)]
        total.add_(blocks[0].sum() * (len(held) / 100))

    replayed = Replayed("the work", recorder_for(gpu))
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(4):
            replayed(work, Batch([torch.ones(4, 2, 2, device=gpu)], torch.zeros(4, device=gpu), []))
    finally:
        gc.set_threshold(*before)
    assert replayed.why_eager is None
    assert len(calls) == 2
    assert total.item() == 4 * 16


def given(form, device):
    """Batches, of which none lies where another one did, with their rates."""
    moved = []
    for batch in batches(form):
        blocks = [map_tensors(block, lambda tensor: tensor.to(device)) for block in batch.blocks]
        moved.append(Batch(blocks, batch.labels.to(device), batch.ids))
    return list(zip(moved, RATES, strict=True))


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize(
    ("form", "where"),
    [
        ("values", "anywhere"),
        ("codes", "anywhere"),
        ("product", "anywhere"),
        ("values", "slots"),
        ("codes", "slots"),
        ("values", "rows"),
    ],
)
def test_replayed_steps_are_eager_steps_bit_for_bit(form, where, autocast, gpu):
    found = []
    for recorder in (None, recorder_for(gpu)):
        place = {"slots": Slots(2), "rows": Rows("values", SIZES, gpu)}.get(where)
        model = adapter().to(gpu)
        optimizer = make_optimizer(model, CONFIG)
        step = AdapterStep(
            model, optimizer, task=TASK, clip_grad=0.5, options={"label_smoothing": 0.1}, autocast=autocast,
            recorder=recorder,
        )  # fmt: skip
        for batch, rate in given(form, gpu):
            step.rates.fill_(rate)
            step(batch if place is None else place.settle(batch))
        found.append((model, step))
    (eager, theirs), (graphed, ours) = found
    assert ours.why_eager is None
    assert same(graphed, eager)
    assert not same(graphed, adapter().to(gpu))
    assert torch.equal(ours.loss, theirs.loss)
    groups = optimizer.state_dict()["param_groups"]
    assert [(type(group["lr"]), group["capturable"]) for group in groups] == [(float, False)] * 2


def stack_step(seeds, recorder, gpu):
    stack = AdapterStack([adapter(seed, rank=2 + seed) for seed in seeds]).to(gpu)
    optimizer = StackedAdamW(stack.decayed(), weight_decay=[0.1] * len(seeds), clip_grad=[0.5] * len(seeds))
    smoothing = [0.1 * seed for seed in seeds]
    options = {"label_smoothing": smoothing}
    return stack, optimizer, StackStep(stack, optimizer, task=TASK, options=options, autocast=None, recorder=recorder)


def test_stacks_take_turns_in_the_memory_of_graphs_and_lose_trials_bit_for_bit(gpu):
    found = []
    for recorder in (None, recorder_for(gpu)):
        first, second = stack_step([0, 1, 2], recorder, gpu), stack_step([3, 4], recorder, gpu)
        for at, one in enumerate(given("values", gpu)):
            if at == 5:
                for part in first:
                    part.keep([0, 2])
            take(first[2], [one], [1.0, 0.5] if at >= 5 else [1.0, 2.0, 0.5])
            take(second[2], [one], [0.7, 1.5])
        assert recorder is None or first[2].why_eager is second[2].why_eager is None
        found.append((first, second))
    for ours, theirs in zip(*found, strict=True):
        assert same(ours[0], theirs[0])
        assert torch.equal(ours[2].loss, theirs[2].loss)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_run_stopped_under_graphs_goes_on_there_and_on_a_cpu(device, tmp_path):
    cache = extract(tiny_backbone(), tiny_samples(61), precision="float32", out=tmp_path / "c.zarr", device="cuda")
    options = {"rank": 4, "epochs": 4, "lr": 0.01, "batch_size": 8, "val_fraction": 0.3, "device": "cuda"}
    whole = lc.train(cache, out=tmp_path / "whole", **options)
    with pytest.raises(Stop):
        lc.train(cache, out=tmp_path / "stopped", report=stop_after(2), **options)
    resumed = lc.resume(tmp_path / "stopped", device=device)
    ours, theirs = (load_file(run.run / "adapter/adapter.safetensors") for run in (resumed, whole))
    close = {"rtol": 0, "atol": 0} if device == "cuda" else {"rtol": 1e-2, "atol": 1e-3}
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], **close)


def test_a_sweep_by_graphs_gives_the_very_figures_of_an_eager_one(tmp_path, monkeypatch):
    cache = extract(tiny_backbone(), tiny_samples(61), precision="float32", out=tmp_path / "c.zarr", device="cuda")
    config = SweepConfig(
        cache=str(cache.path),
        space={"rank": Choices((2, 6)), "lr": Choices((0.01, 0.03, 1e30)), "layers": Choices(("2", "all"))},
        base=replace(CONFIG, epochs=4, batch_size=8, val_fraction=0.3),
    )

    def figures(name):
        create_sweep(tmp_path / name, config)
        Sweep(tmp_path / name, placement=Placement(torch.device("cuda")), report=lambda _: None).run()
        runs = sorted((tmp_path / name / "trials").iterdir())
        return [[[row["train_loss"], row["val_loss"]] for row in results(run)] for run in runs]

    graphed = figures("graphed")
    monkeypatch.setattr(cohort, "recorder_for", lambda device: None)
    torch.testing.assert_close(graphed, figures("eager"), rtol=0, atol=0, equal_nan=True)

"""Ctrl-C and kills in the middle of an epoch: the run goes on at the next batch, to the same result."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import losa_cache as lc
from losa_cache.data.samples import Samples
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.spec import SIDES
from losa_cache.train import loop, memory_check
from losa_cache.train.memory_check import needed_bytes, remedy, require_memory, saved_bytes
from tests.conftest import losa_cache, results, tiny_backbone, tiny_samples
from tests.forked import Forked

ONLINE = [
    *("train", "--online", "--backbone", "vit_digits", "--dataset", "digits", "--device", "cpu"),
    *("--limit", "300", "--epochs", "5", "--rank", "4", "--batch-size", "32", "--lr", "0.01", "--head", "last"),
    *("--augment", "rand-m9-mstd0.5-inc1", "--mixup", "0.2", "--cutmix", "1.0", "--reprob", "0.25"),
]
ENVIRONMENT = dict(os.environ) | {"OMP_NUM_THREADS": "1"}


def start(*arguments: str, cwd: Path) -> subprocess.Popen:
    command = [str(Path(sys.executable).with_name("losa-cache")), *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def written(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # one in each epoch but the first


@pytest.mark.slow
def test_a_stop_in_an_online_run_costs_nothing(tmp_path):
    """As a terminal or a batch system does it: the signal goes to the whole group, decoding processes included."""
    whole = start(*ONLINE, "--out", "whole", cwd=tmp_path)
    whole.communicate()
    assert whole.returncode == 0
    arguments, stopped_at = [*ONLINE, "--out", "stopped"], []
    while True:
        process = start(*arguments, cwd=tmp_path)
        checkpoint = tmp_path / "stopped" / "checkpoint.pt"
        sent = STOPS[len(stopped_at)] if len(stopped_at) < len(STOPS) else None
        if sent is not None:
            before = written(checkpoint)
            while process.poll() is None and written(checkpoint) == before:
                time.sleep(0.01)  # an epoch's end: what follows is the middle of the next
            time.sleep(0.3)
            if process.poll() is None:
                os.killpg(process.pid, sent)
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == 128 + sent, errors
        with pytest.raises(ProcessLookupError):  # no decoding process is left
            os.killpg(process.pid, 0)
        assert "Traceback" not in errors
        assert "stopping after this batch" in errors
        assert "stopped: what is finished is kept" in errors
        state = torch.load(checkpoint, weights_only=True)
        stopped_at.append((state["epoch"], state["passed"]["steps"]))
        arguments = ["train", "--resume", "stopped", "--device", "cpu"]
    assert stopped_at
    ours, theirs = (load_file(tmp_path / name / "adapter/adapter.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert results(tmp_path / "whole") == results(tmp_path / "stopped")


@pytest.mark.parametrize("decoded", [10, 17, *(pytest.param(own, marks=pytest.mark.slow) for own in (3, 30, 39))])
def test_ctrl_c_at_any_batch_resumes_at_the_next(tmp_path, decoded):
    """Two epochs of 16 training images and 7 held-out ones (decoded once, behind the first epoch)."""
    options = {"epochs": 2, "rank": 4, "lr": 0.01, "batch_size": 3, "val_fraction": 0.3, "device": "cpu"}
    online, backbone = lc.OnlineConfig("tiny0", "tiny", precision="float32"), tiny_backbone()
    whole = lc.train(online=online, backbone=backbone, dataset=tiny_samples(), out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        dataset = interrupting(tiny_samples(), decoded)
        lc.train(online=online, backbone=backbone, dataset=dataset, out=tmp_path / "stopped", **options)
    checkpoint = tmp_path / "stopped" / "checkpoint.pt"
    if decoded < 16:  # while the probe reads the training images, there is nothing to keep
        assert not checkpoint.exists()
    else:
        state = torch.load(checkpoint, weights_only=True)
        assert (state["epoch"], state["passed"]["steps"]) != (2, 0)
    resumed = lc.resume(tmp_path / "stopped", backbone=backbone, dataset=tiny_samples(), device="cpu")
    ours, theirs = whole.adapter.trained_state(), resumed.adapter.trained_state()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert results(tmp_path / "whole") == results(tmp_path / "stopped")


def interrupting(samples: Samples, after: int) -> Samples:
    """Press Ctrl-C when so many images have been decoded."""
    count, load, guard = 0, samples.load, threading.Lock()

    def counted(i):
        nonlocal count
        with guard:
            count += 1
            if count == after:
                os.kill(os.getpid(), signal.SIGINT)
        return load(i)

    return Samples(**{**vars(samples), "load": counted})


def test_a_kill_in_a_long_epoch_costs_the_steps_since_the_last_checkpoint(tiny_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)  # five minutes have passed at every step
    options = {"epochs": 2, "rank": 4, "lr": 0.01, "batch_size": 4, "val_fraction": 0, "device": "cpu"}
    whole = lc.train(tiny_cache, out=tmp_path / "whole", **options)
    saves, save = [], loop.Run.save_checkpoint

    def dying(run, state):
        save(run, state)
        saves.append((state["epoch"], state["passed"]["steps"]))
        if len(saves) == 4:
            raise MemoryError("as if killed")

    monkeypatch.setattr(loop.Run, "save_checkpoint", dying)
    with pytest.raises(MemoryError):
        lc.train(tiny_cache, out=tmp_path / "killed", **options)
    assert saves == [(0, 1), (0, 2), (0, 3), (0, 4)]
    resumed = lc.resume(tmp_path / "killed", device="cpu")
    assert saves[4] == (0, 5)
    ours, theirs = whole.adapter.trained_state(), resumed.adapter.trained_state()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_ctrl_c_belongs_to_the_caller_again_afterwards(tiny_cache, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    lc.train(tiny_cache, rank=2, epochs=1, out=tmp_path / "run", device="cpu")
    assert signal.getsignal(signal.SIGINT) is before


def test_training_works_outside_the_main_thread(tiny_cache, tmp_path):
    done = []
    thread = threading.Thread(
        target=lambda: done.append(lc.train(tiny_cache, rank=2, epochs=1, out=tmp_path / "run", device="cpu"))
    )
    thread.start()
    thread.join()
    assert done


SHAPE = (4, 65, 96)


@pytest.fixture
def adapter() -> Adapter:
    tail = lc.load_backbone("vit_digits").tail
    return Adapter(side="losa", depth=4, tokens=65, width=96, rank=8, classes=5, tail=tail)


def test_what_a_batch_keeps_grows_by_the_sample_and_holds_at_least_its_blocks(adapter):
    sizes = [needed_bytes(adapter, SHAPE, torch.float32, batch, None) for batch in (1, 2, 3, 9)]
    slope = sizes[1] - sizes[0]
    assert np.diff(sizes).tolist() == [slope, slope, 6 * slope]
    assert slope >= np.prod(SHAPE) * 4


def test_counting_what_autograd_saves_leaves_nothing_behind():
    values, made = torch.randn(3, 5, requires_grad=True), []

    def forward():
        shares = (2 * values).softmax(1)  # whose backward pass needs its own result
        made.append(weakref.ref(shares))
        return shares.sum()

    assert saved_bytes(forward, [values], None) == 3 * 5 * 4
    assert made[0]() is None


def test_a_batch_without_room_is_refused_and_the_one_that_fits_is_named(adapter):
    with pytest.raises(
        lc.UserError, match=r"a batch of 1000000000 keeps .* GB .*: --batch-size (\d+) would fit"
    ) as error:
        require_memory(adapter, SHAPE, torch.float32, batch_size=10**9, autocast=None)
    fits = int(str(error.value).split("--batch-size ")[1].split()[0])
    require_memory(adapter, SHAPE, torch.float32, batch_size=fits // 2, autocast=None)


def test_no_option_is_advised_for_room_that_a_side_network_does_not_have(adapter, monkeypatch):
    pooled = "a cache of pooled rows (extract --tokens pooled)"
    for side, device, advice in (
        ("losa", "cpu", "choose fewer --layers or a smaller --rank"),
        ("fusion", "cpu", f"choose fewer --layers or {pooled}"),
        ("linear", "cpu", f"choose {pooled}"),
        ("linear", "cuda", f"choose {pooled} or --device cpu"),
        ("attentive", "cpu", "it needs a machine with more memory"),
        ("attentive", "cuda", "choose --device cpu"),
    ):
        assert remedy(SIDES[side], torch.device(device)) == advice
    monkeypatch.setattr(memory_check, "available_memory", lambda device: 0)
    linear = Adapter(side="linear", depth=1, tokens=65, width=96, rank=8, classes=5, tail=adapter.tail)
    with pytest.raises(lc.UserError, match=re.escape(f"not one sample would fit; choose {pooled}.") + "$"):
        require_memory(linear, (1, 65, 96), torch.float32, batch_size=1, autocast=None)


def test_a_device_without_room_for_the_batch_is_one_sentence(tmp_path, digits):
    """Under an address-space limit (ulimit -v) not far above what the process itself takes."""
    code = (
        "import resource, tests.loaded, losa_cache.cli as cli\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 500_000_000,) * 2)\n"
        "cli.main()\n"
    )
    command = f"train --cache {digits['train']} --device cpu --batch-size 448 --val-fraction 0 --rank 96".split()
    done = Forked("-c", code, *command, cwd=tmp_path).wait()
    assert done.returncode == 2, done.stderr
    notes = ("are kept", "samples to train on")  # said before the first batch
    said = [line for line in done.stderr.strip().splitlines() if not any(note in line for note in notes)]
    assert [line[:6] for line in said] == ["error:"]
    named = re.search(r"of 448.*--batch-size (\d+)", done.stderr)
    assert named, done.stderr
    assert 0 < int(named[1]) < 448


def test_online_runs_say_where_a_resumed_one_differs(tmp_path):
    options = {"epochs": 2, "rank": 2, "val_fraction": 0, "device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        lc.train(
            online=lc.OnlineConfig("tiny0", "tiny"), backbone=tiny_backbone(), out=tmp_path / "run",
            dataset=interrupting(tiny_samples(), 5), **options,
        )  # fmt: skip
    with pytest.raises(lc.UserError, match=r"began with other data: it differs in dataset\.fingerprint"):
        lc.resume(tmp_path / "run", backbone=tiny_backbone(), dataset=tiny_samples(24), device="cpu")
    assert losa_cache("train", "--resume", str(tmp_path / "run")).returncode == 2  # 'tiny0' is not a name to load

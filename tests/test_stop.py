"""Signals to stop, and what a machine refuses: exit codes, one sentence, nothing lost."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import losa_cache as lc
from losa_cache.failures import sentence
from losa_cache.stop import SIGNALS, WARNINGS, Signals, interrupt
from losa_cache.train import evaluate_run
from tests.conftest import results
from tests.extract.test_extract import contents
from tests.forked import Forked

TERM, HUP, USR1 = signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1


def test_the_first_signal_counts_and_what_comes_with_it_does_not():
    before, times = [signal.getsignal(number) for number in SIGNALS], []
    with Signals(lambda: times.append(time.monotonic())) as signals:
        for number in (HUP, TERM, HUP):  # as a terminal that closes
            signal.raise_signal(number)
        assert signals.received == HUP
    assert len(times) == 1
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(KeyboardInterrupt), Signals(interrupt):
        signal.raise_signal(TERM)


def test_what_is_ignored_stays_ignored_and_threads_change_nothing():
    def taken() -> list[int]:
        with Signals(interrupt):
            return [number for number in SIGNALS if getattr(signal.getsignal(number), "__name__", "") == "_take"]

    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        assert taken() == [signal.SIGINT, TERM]
        assert signal.getsignal(HUP) == signal.SIG_IGN
    finally:
        signal.signal(HUP, before)
    found = []
    thread = threading.Thread(target=lambda: found.append(taken()))
    thread.start()
    thread.join()
    assert found == [[]]


def test_warnings_of_batch_systems_are_a_commands_and_not_a_callers():
    noted = []
    before = [signal.signal(number, lambda number, _: noted.append(number)) for number in WARNINGS]
    try:
        with Signals(interrupt) as caller:
            signal.raise_signal(USR1)
        assert (caller.received, noted) == (None, [USR1])
        with Signals(lambda: noted.append("command"), warnings=True) as command, Signals(lambda: None) as loop:
            signal.raise_signal(signal.SIGUSR2)
            assert (command.received, loop.received) == (None, signal.SIGUSR2)
        assert noted == [USR1]
        signal.raise_signal(signal.SIGUSR2)
        assert noted == [USR1, signal.SIGUSR2]
    finally:
        for number, handler in zip(WARNINGS, before, strict=True):
            signal.signal(number, handler)


def test_a_second_signal_ends_at_once():
    code = (
        "import signal, time\n"
        "from losa_cache import stop\n"
        "stop.TOGETHER = 0.0\n"
        "with stop.Signals(lambda: None):\n"
        "    signal.raise_signal(signal.SIGTERM); time.sleep(0.01); print('noted', flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM); print('not reached', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-TERM, "noted\n", "")


@pytest.mark.parametrize(
    "number", [TERM, *(pytest.param(own, marks=pytest.mark.slow) for own in (signal.SIGINT, USR1))]
)
def test_a_signal_while_packages_are_imported_is_one_sentence(tmp_path, number):
    command = [str(Path(sys.executable).with_name("losa-cache")), "sweep", "--cache", ".", "--rank", "2,4"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "libtorch" not in maps.read_text():
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert (
        errors
        == "stopped: what is finished is kept. Run the same command to go on; train and sweep go on with --resume.\n"
    )


WARNED = """
import os, signal, sys
from losa_cache.cache.shard import ShardWriter
from losa_cache.__main__ import main
from losa_cache.train import loop
at, *sys.argv = int(sys.argv[1]), "losa-cache", *sys.argv[2:]
count = 0
def counted(work):
    def step(*arguments, **named):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return work(*arguments, **named)
    return step
ShardWriter.append, loop.Run.log = counted(ShardWriter.append), counted(loop.Run.log)
main()
"""
"""A command that is warned as SLURM does it, when it has appended so many rows or logged so many epochs."""


def test_a_batch_systems_warning_ends_extract_and_train_and_the_same_goes_on(tiny_cache, tmp_path):
    def warned(at: int, *words: str) -> Forked:
        return Forked("-c", WARNED, str(at), *words, "--device", "cpu", "--json", cwd=tmp_path).wait()

    images = {"backbone": "vit_digits", "dataset": "digits", "limit": 12, "batch_size": 4, "device": "cpu"}
    words = [word for name, value in images.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    stopped = warned(6, "extract", *words, "--out", "c.zarr")
    assert (stopped.returncode, stopped.stdout) == (128 + USR1, "")
    assert stopped.stderr.splitlines()[-1].startswith("stopped: what is finished is kept")
    for name in ("c.zarr", "whole.zarr"):
        lc.extract(**images, out=tmp_path / name)
    assert contents(tmp_path / "c.zarr") == contents(tmp_path / "whole.zarr")

    words = ["--cache", str(tiny_cache.path), "--rank", "2", "--epochs", "3", "--batch-size", "4", "--lr", "0.01"]
    stopped = warned(2, "train", *words, "--out", "run")
    assert stopped.returncode == 128 + USR1, stopped.stderr
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    lc.resume(tmp_path / "run", device="cpu")
    lc.train(tiny_cache, out=tmp_path / "whole", rank=2, epochs=3, batch_size=4, lr=0.01, device="cpu")
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_what_handled_a_signal_before_receives_it_after_the_checkpoint(tiny_cache, tmp_path):
    """A library's caller has a handler of its own, which only notes the signal."""
    options = {"rank": 2, "epochs": 4, "batch_size": 4, "lr": 0.01, "device": "cpu"}
    whole = lc.train(tiny_cache, out=tmp_path / "whole", **options)
    noted, own = [], lambda number, frame: noted.append((tmp_path / "run" / "checkpoint.pt").exists())
    before = signal.signal(TERM, own)
    try:
        with pytest.raises(KeyboardInterrupt):
            lc.train(
                tiny_cache, out=tmp_path / "run", **options,
                progress=lambda done: signal.raise_signal(TERM) if 1 < done < 2 else None,
            )  # fmt: skip
        assert signal.getsignal(TERM) is own
    finally:
        signal.signal(TERM, before)
    assert noted == [True]
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["passed"]["steps"]) == (1, 1)
    resumed = lc.resume(tmp_path / "run", device="cpu")
    ours, theirs = whole.adapter.trained_state(), resumed.adapter.trained_state()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert results(tmp_path / "whole") == results(tmp_path / "run")


class Limited:
    """A limit on a file's size stands in for a full disk: the kernel refuses the write, too."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


@pytest.mark.parametrize(("size", "name"), [(5000, "checkpoint.pt"), (450, "metrics.jsonl")])
def test_a_disk_that_is_full_ends_training_with_a_sentence_and_costs_nothing(tiny_cache, tmp_path, size, name):
    options = {"rank": 2, "epochs": 3, "batch_size": 8, "device": "cpu", "val_fraction": 0.3}
    whole = lc.train(tiny_cache, out=tmp_path / "whole", **options)
    limit = Limited(size)
    with pytest.raises(
        lc.UserError, match=rf"run/{name}' cannot be written \(File too large\): what was there is kept"
    ):
        try:
            lc.train(
                tiny_cache, out=tmp_path / "run", **options,
                report=lambda metrics: limit.__enter__() if metrics["epoch"] == 1 else None,
            )  # fmt: skip
        finally:
            limit.__exit__()
    assert not list((tmp_path / "run").glob("*.partial"))
    assert len(results(tmp_path / "run")) == (2 if name == "checkpoint.pt" else 1)
    resumed = lc.resume(tmp_path / "run", device="cpu")
    ours, theirs = whole.adapter.trained_state(), resumed.adapter.trained_state()
    assert all(torch.equal(ours[own], theirs[own]) for own in ours)
    assert results(tmp_path / "whole") == results(tmp_path / "run")


def test_events_that_cannot_be_written_do_not_cost_the_run(tiny_cache, tmp_path, caplog, monkeypatch):
    (tmp_path / "long").mkdir()
    monkeypatch.setattr("socket.gethostname", lambda: "a" * 300)  # no file system has such names
    lc.train(tiny_cache, out=tmp_path / "run", rank=2, epochs=2, device="cpu")
    assert len([line for line in caplog.messages if "the run goes on without it" in line]) == 1
    assert len(results(tmp_path / "run")) == 2


def test_a_result_that_cannot_be_stored_is_not_lost(tiny_cache, tmp_path, monkeypatch, caplog):
    run = lc.train(tiny_cache, out=tmp_path / "run", rank=2, epochs=1, device="cpu").run
    stored = lc.evaluate_run(run, device="cpu")
    before = (run / "eval.json").read_bytes()
    with (
        Limited(50),
        pytest.raises(lc.UserError, match=r"eval.json' cannot be written .*It would say: top-1 \d") as full,
    ):
        lc.evaluate_run(run, device="cpu")
    assert f"loss {stored['loss']:.4f}" in str(full.value)
    assert (run / "eval.json").read_bytes() == before

    def read_only(*_: object) -> None:  # the tests may run as root, whom permissions do not stop
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "eval.json")

    monkeypatch.setattr(evaluate_run, "write_json", read_only)
    assert lc.evaluate_run(run, device="cpu") == stored
    assert "could not be stored" in caplog.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            r"'a/b' could not be used \(No space left.*: make room",
        ),
        (PermissionError(errno.EACCES, "Permission denied", b"a/b"), "'a/b' could not be used .*permissions"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (MemoryError(), "ran out of memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"), "ran out of"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), "ran out of memory"),
    ],
)
def test_what_the_machine_refuses_is_a_sentence(error, said):
    assert re.search(said, sentence(error))


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("shapes"), OSError("no number"), KeyError("k")])
def test_our_own_mistakes_keep_their_traceback(error):
    assert sentence(error) is None

"""Several processes of one machine: each gets its share, they write what one would, and one of them tells the end."""

import json
import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch

from losa_cache.cache.store import open_cache
from losa_cache.errors import UserError
from losa_cache.extract import processes
from losa_cache.extract.config import ExtractConfig
from losa_cache.extract.extract import extract
from losa_cache.extract.meter import Meter
from losa_cache.extract.process_plan import part_of, shares_of
from losa_cache.extract.verify import verify_cache
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents
from tests.forked import Forked
from tests.test_children import runs, until

IMAGES = {"backbone": "vit_digits", "dataset": "digits", "device": "cpu", "batch_size": 4}
SHARD_BYTES = 450_000  # of four images


class Watching(Meter):
    """Do something when so many images are written."""

    def __init__(self, at: int = 0, work=lambda: None) -> None:
        super().__init__()
        self.seen, self._at, self._work = [], at, work

    def update(self) -> None:
        super().update()
        self.seen.append((self.images, self.elsewhere, self.total))
        if self.images >= self._at > 0:
            self._at = 0
            self._work()


LOADED = """
import os, runpy, sys
reads, held = os.pipe()  # what a parent would hold
os.dup2(reads, 0)
sys.argv = sys.argv[1:]
sys.modules.pop(sys.argv[0], None)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""A worker in a process that has imported everything already."""


def test_what_the_workers_write_is_what_one_process_does(tmp_path):
    config = ExtractConfig(**IMAGES, limit=48, out=tmp_path / "two.zarr", processes=2)
    commands = [processes.command(share, 2, SHARD_BYTES) for share in shares_of(config, None, workers=1)]
    workers = [Forked("-c", LOADED, *command.words[command.words.index("-m") + 1 :]) for command in commands]
    told = []
    for worker in workers:
        assert worker.wait().returncode == 0, worker.stderr
        told.append([json.loads(line) for line in worker.stdout.splitlines()])
    assert [lines[-1] for lines in told] == [{"cache": str(tmp_path / "two.zarr")}] * 2
    assert sum(lines[-2]["images"] for lines in told) == 48
    one = extract(**IMAGES, limit=48, out=tmp_path / "one.zarr", shard_bytes=SHARD_BYTES)
    assert one.layout.shards == 12
    assert contents(tmp_path / "two.zarr") == contents(one.path)


@pytest.mark.slow  # half a minute: each process imports torch
def test_two_processes_write_what_one_does(tmp_path):
    meter = Watching()
    two = extract(**IMAGES, limit=48, out=tmp_path / "two.zarr", processes=2, shard_bytes=SHARD_BYTES, meter=meter)
    one = extract(**IMAGES, limit=48, out=tmp_path / "one.zarr", shard_bytes=SHARD_BYTES)
    assert contents(two.path) == contents(one.path)
    assert contents(two.receipts) == contents(one.receipts)
    assert meter.seen[-1] == (48, 0, 48)
    assert [images for images, _, _ in meter.seen] == sorted(images for images, _, _ in meter.seen)
    again = Watching()
    assert extract(**IMAGES, limit=48, out=two.path, meter=again).manifest.complete
    assert again.seen == []


@pytest.mark.slow  # half a minute
def test_what_a_killed_process_had_begun_is_done_by_the_others(tmp_path, caplog):
    def kill() -> None:
        os.kill(started()[0], signal.SIGKILL)

    options = {"limit": 200, "shard_bytes": SHARD_BYTES}
    killed = extract(**IMAGES, **options, out=tmp_path / "two.zarr", processes=2, meter=Watching(40, kill))
    assert re.search(r"process \d failed, and the others did its part: it was killed", caplog.text)
    one = extract(**IMAGES, **options, out=tmp_path / "one.zarr")
    assert contents(killed.path) == contents(one.path)
    assert contents(killed.receipts) == contents(one.receipts)


STOPPED = """
import os, signal, sys
from losa_cache.cache import layout
from losa_cache.display import ExtractionBar
from losa_cache.extract import extract as module
at, number, *words = sys.argv[1:]
update = ExtractionBar.update
def counted(bar):
    update(bar)
    if bar.images >= int(at):
        os.kill(os.getpid(), int(number))
ExtractionBar.update = counted
module.extract.__kwdefaults__["shard_bytes"] = 450_000
sys.argv = ["losa-cache", *words]
from losa_cache.__main__ import main
main()
"""
"""The command line, which is sent a signal when so many images are written."""


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_a_parent_that_is_stopped_leaves_no_process_and_the_same_command_goes_on(tmp_path, number):
    words = [
        *("extract", "--backbone", "vit_digits", "--dataset", "digits", "--limit", "200", "--batch-size", "4"),
        *("--out", "two.zarr", "--processes", "2", "--device", "cpu", "--json"),
    ]
    process = Forked("-c", STOPPED, "40", str(int(number)), *words, cwd=tmp_path)
    children = set()
    until(lambda: children.update(started(process.pid)) or len(children) == 2 or process.poll() is not None)
    stopped = process.wait()
    until(lambda: not any(map(runs, children)))
    assert stopped.returncode == (-number if number == signal.SIGKILL else 128 + number), stopped.stderr
    assert stopped.stdout == ""
    if number != signal.SIGKILL:
        assert stopped.stderr.splitlines()[-1].startswith("stopped: what is finished is kept")
        assert len(stopped.stderr.splitlines()) == 1
    missing = 50 - len([name for name in os.listdir(tmp_path / "two.zarr.receipts") if name.endswith(".json")])
    assert 0 < missing < 50
    again = Forked("-c", STOPPED, "1000", str(int(number)), *words, cwd=tmp_path).wait()
    assert json.loads(again.stdout)["extracted_now"] == 4 * missing
    one = extract(**IMAGES, limit=200, out=tmp_path / "one.zarr", shard_bytes=SHARD_BYTES)
    assert contents(tmp_path / "two.zarr") == contents(one.path)
    assert verify_cache(one.path)["intact"]


def started(parent: int | None = None) -> list[int]:
    """The workers of a process."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and runs(int(folder.name)):
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if above == (parent or os.getpid()) and processes.WORKER in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


def test_a_machine_is_divided_among_its_gpus():
    config = ExtractConfig(backbone="vit_b", dataset="cifar100", layers=[3, 12], out=Path("a/c.zarr"), gpus=[3, 0])
    shares = shares_of(config, {3: "GPU-17", 0: "0"}, workers=5)
    assert [(share.name, share.environment) for share in shares] == [
        ("GPU 3", {"CUDA_VISIBLE_DEVICES": "GPU-17"}),
        ("GPU 0", {"CUDA_VISIBLE_DEVICES": "0"}),
    ]
    for share in shares:
        own = ExtractConfig(**json.loads(json.dumps(share.options)))
        assert (own.gpus, own.processes, own.device, own.workers, own.part) == (None, None, "cuda", 5, "auto")
        assert (own.layers, own.out, own.to_json()) == ([3, 12], "a/c.zarr", config.to_json())
    given = ExtractConfig(backbone="vit_b", dataset="cifar100", processes=3, workers=8)
    assert [share.options["workers"] for share in shares_of(given, None, workers=5)] == [2, 2, 2]
    assert {share.options["device"] for share in shares_of(given, None, workers=5)} == {"cpu"}


def test_a_part_is_divided_into_parts_of_its_units():
    """Whatever the machines have: this one eight GPUs, that one two; each unit of a part has one process."""
    count = Counter()
    for machine, gpus in ((1, 8), (2, 2), (3, 1)):
        for number in range(gpus):
            which, parts = map(int, part_of(f"{machine}/3", number, gpus).split("/"))
            units = range(which - 1, 240, parts)
            assert {unit % 3 for unit in units} == {machine - 1}
            count.update(units)
    assert count == Counter(range(240))
    assert {part_of(part, 1, 2) for part in (None, "auto")} == {"auto"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpus": "all", "processes": 2}, "--gpus runs one process on each GPU: leave --processes out"),
        ({"gpus": "0,1", "device": "cpu"}, "--gpus names the devices, and device is 'cpu': leave one of the two out"),
        ({"gpus": "0,1", "device": "cuda:1"}, "device is 'cuda:1': leave one of the two out"),
        ({"gpus": "1;2"}, "write all, or numbers of GPUs"),
        ({"processes": 0}, "processes is 0: it must be at least 1"),
        ({"processes": 2, "device": "cuda"}, "--processes divides the CPU, and device is 'cuda': for GPUs there is"),
    ],
)
def test_what_contradicts_itself_is_refused_at_once(options, said):
    with pytest.raises(UserError, match=said):
        ExtractConfig(backbone="vit_digits", dataset="digits", **options)


def test_what_another_process_cannot_open_is_refused(tmp_path):
    with pytest.raises(UserError, match="open backbone and data set by their names: name them"):
        extract(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr", processes=2, device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--gpus needs a GPU, and there is none here"):
            extract("vit_digits", "digits", out=tmp_path / "c.zarr", gpus="all")
    with pytest.raises(UserError, match="--scheduler has a cluster's workers do the work: leave --gpus and --proc"):
        extract("vit_digits", "digits", out=tmp_path / "c.zarr", gpus="all", scheduler="tcp://nobody:8786")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def ending(monkeypatch):
    """Run two workers of stub_worker.py that end as they are told."""
    monkeypatch.setattr(processes, "WORKER", "tests.extract.stub_worker")
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))

    def run(*ends: dict, **options):
        monkeypatch.setenv("ENDS", json.dumps(ends))
        meter = Watching()
        return extract("vit_digits", "digits", gpus="all", workers=6, meter=meter, **options), meter

    return run


BAD = {"code": 2, "says": ["error: 'bee/torn.png' does not decode: mend it."]}


def test_what_all_of_them_refuse_is_said_once(ending, caplog):
    with pytest.raises(UserError, match=r"^'bee/torn.png' does not decode: mend it\.$"):
        ending(BAD, BAD)
    (line,) = caplog.messages
    assert re.fullmatch(r"GPU [01]: device cuda, 3 threads, part auto", line)


def test_an_error_of_one_is_told_with_what_is_left(ending):
    with pytest.raises(UserError, match=r"^GPU 1: it was killed, as the .*; at least 9 of 20 images are left"):
        ending({"code": 0, "images": 8}, {"code": "killed", "images": 3})
    with pytest.raises(UserError, match=r"GPU 0: 'bee/torn.png' does not .* 15 of 20 images are left for the same"):
        ending(BAD | {"images": 5}, {"code": 143})


def test_a_mistake_of_ours_keeps_its_traceback(ending, caplog):
    with pytest.raises(RuntimeError, match="GPU 0: it failed with exit code 1; the lines above say why"):
        ending({"code": 1, "says": ["Traceback", "ValueError: x"]}, {"code": 0})
    assert [line for line in caplog.messages if "device" not in line] == ["GPU 0: Traceback", "GPU 0: ValueError: x"]


def test_a_failure_that_the_others_make_good_is_a_warning(ending, caplog, tiny_cache):
    done = {"code": 0, "cache": str(tiny_cache.path)}
    cache, meter = ending(BAD | {"images": 3}, done | {"images": 17})
    assert cache.path == open_cache(tiny_cache.path).path
    assert meter.seen[-1] == (20, 0, 20)
    assert "GPU 0 failed, and the others did its part: 'bee/torn.png' does not decode: mend it." in caplog.messages
    ending(done | {"images": 20}, done | {"images": 0})
    assert caplog.messages[-1] == "1 of 2 processes had nothing to write: the cache has too few shards."

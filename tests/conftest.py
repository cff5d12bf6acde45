import gc
import os

import torch

if not torch.cuda.is_available():  # before anything imports triton: kernels run on the CPU, where a test calls them
    os.environ.setdefault("TRITON_INTERPRET", "1")

import fcntl
import json
import shutil
import signal
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer

from losa_cache.backbone import Backbone
from losa_cache.cache.registry import remember
from losa_cache.cache.storage import receipts_of
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.data.samples import Samples, hash_lines
from losa_cache.data.transforms import InputSpec
from losa_cache.extract.extract import extract
from losa_cache.extract.plan import cache_name
from losa_cache.probe.logistic import PATH
from tests.forked import Forked
from tests.servers import BUCKET, ENVIRONMENT, s3_server

torch.set_num_threads(1)  # the work is too small to share
os.fsync = lambda handle: None  # hundreds a test; no test cuts the power, and a killed process loses nothing by it


for number in (signal.SIGINT, signal.SIGHUP):  # ignored where the tests run in the background or under nohup
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    """Mark as long what a list says, and what needs the embedded default's caches or a server."""
    listed = set(Path(__file__).with_name("long.txt").read_text().splitlines())
    for item in items:
        if item.nodeid.partition("[")[0] in listed or {"digits", "s3"} & set(item.fixturenames):
            item.add_marker("long")


def pytest_collection():
    gc.disable()  # nothing that modules make is garbage


def pytest_collection_finish():
    """Collect garbage again, but seldom, and never look through what the modules made: 600,000 objects."""
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


def pytest_sessionfinish():
    gc.unfreeze()  # libraries count what is left of theirs at the end


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOSA_CACHE_HOME", str(tmp_path / "home"))


def tiny_backbone(seed: int = 0, **options) -> Backbone:
    """A ViT small enough for tests: 4 blocks x 32 channels, 5 tokens, unless told otherwise."""
    torch.manual_seed(seed)
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 0}
    model = VisionTransformer(**(arguments | options))
    for parameter in model.parameters():  # timm starts biases and CLS at zero, which would hide mistakes
        torch.nn.init.normal_(parameter, std=0.1)
    model.pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    spec = InputSpec.from_timm(resolve_model_data_config(model))
    return Backbone(model, name=f"tiny{seed}", random=True, input=spec)


def tiny_samples(count: int = 23, *, bad: tuple[int, ...] = (), split: str = "train", name: str = "tiny") -> Samples:
    """Random 8 x 8 images in three classes; those in ``bad`` do not decode."""
    pixels = np.random.default_rng(7).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    ids = [f"image-{i:03d}" for i in range(count)]

    def load(i: int) -> Image.Image:
        if i in bad:
            raise OSError("image file is truncated")
        return Image.fromarray(pixels[i])

    labels = np.arange(count, dtype=np.int64) % 3
    return Samples(name, split, ("a", "b", "c"), ids, labels, load, hash_lines(ids, pixels.tobytes()))


@pytest.fixture(scope="session")
def tiny_original(tmp_path_factory) -> ActivationCache:
    """What ``tiny_cache`` copies."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSA_CACHE_HOME", str(folder / "home"))
        return extract(
            tiny_backbone(), tiny_samples(), precision="float32", out=folder / "tiny.zarr", shard_bytes=13_000
        )


@pytest.fixture
def tiny_cache(tiny_original, tmp_path) -> ActivationCache:
    """A complete float32 cache of 23 tiny samples in shards of five, the test's own, as if just extracted."""
    for folder in (tiny_original.path, tiny_original.receipts):
        shutil.copytree(folder, tmp_path / folder.name)
    cache = open_cache(tmp_path / "tiny.zarr")
    remember(cache.path, cache.manifest, cache.manifest.options, seconds=0.1)
    return cache


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> dict[str, Path]:
    """The embedded default's two caches, made by the command line itself, once for all processes of the tests."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "digits"
    home.mkdir(exist_ok=True)
    with open(home / "made", "a+") as made:
        fcntl.flock(made, fcntl.LOCK_EX)
        if not os.fstat(made.fileno()).st_size:  # not tell(): that is where the file ended before the wait
            for split in ("train", "test"):
                words = ["--backbone", "vit_digits", "--dataset", "digits", "--split", split]
                done = losa_cache("extract", *words, "--out", str(home / f"{split}.zarr"), home=home)
                assert done.returncode == 0, done.stderr
            made.write("yes")
    return {"home": home, "train": home / "train.zarr", "test": home / "test.zarr"}


@pytest.fixture
def digits_home(digits, tmp_path, monkeypatch):
    """A home that holds both caches of the embedded default already, and a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    caches = tmp_path / "home" / "caches"
    caches.mkdir(parents=True)
    for split in ("train", "test"):
        there = caches / cache_name(open_cache(digits[split]).manifest)
        there.symlink_to(digits[split])
        receipts_of(there).symlink_to(receipts_of(digits[split]))


@pytest.fixture(scope="session")
def s3():
    """Address of an S3 server with an empty bucket."""
    with s3_server(BUCKET) as address:
        yield address


@pytest.fixture
def s3_environment(s3, monkeypatch):
    """What a user sets to reach it."""
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": s3}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def no_figures(monkeypatch):
    """Let sweeps, comparisons and probes write reports without figures, which take longer than the rest of them."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(import_module("losa_cache.sweep.report.report"), "draw", lambda record: {})
    monkeypatch.setattr(import_module("losa_cache.pareto.report"), "draw", lambda found, title: Figure((1, 1)))
    monkeypatch.setattr(import_module("losa_cache.probe.report"), "draw", lambda record: Figure((1, 1)))


@pytest.fixture
def few_values_of_c(monkeypatch):
    """Let probes choose from four values of C; tests of the probe hold the whole path to another library's."""
    monkeypatch.setattr(import_module("losa_cache.probe.lines"), "PATH", PATH[:25:8])
    monkeypatch.setattr(import_module("losa_cache.sweep.engine.probes"), "PATH", PATH[:25:8])


def results(run: Path) -> list[dict]:
    """The metrics of a run's epochs, but for those of time and memory, and for what never changes."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    costs = ("train_images", "train_cpu", "train_gpu", "parameters", "adapter_macs", "inference_macs")
    times = ("train_seconds", "train_read", "train_peak_gb", "limiter", *costs)
    return [{name: value for name, value in line.items() if not name.startswith(times)} for line in read]


def losa_cache(*arguments: str, home: Path | None = None, cwd: Path | None = None) -> Forked:
    """Run the command line in a process of its own."""
    environment = dict(os.environ) | ({"LOSA_CACHE_HOME": str(home)} if home else {})
    return Forked("-m", "losa_cache", *arguments, env=environment, cwd=cwd).wait()

"""What a side network is worth: LoSA beside probes, attention over features, and LoRA inside the backbone.

    pip install peft
    python benchmarks/accuracy.py DATA_DIR --weights FILE [--caches FOLDER] [--out accuracy.jsonl]

DATA_DIR holds the folders of --sets, each with train/ and test/ of class folders. Every method chooses what it chooses
on images held out of the training images (by a hash of their ids: the same for all methods), never on test images; the
test images are read once, by the final model. With fewer images a class, seed s draws the same images for all methods.

Every result is a line of --out: the benchmark goes on where it was interrupted, and what is selected now is added to
what is there. Seconds are those of choosing and training, and of the extraction, in proportion where only a part of the
images is used. --caches keeps <set>-train.zarr and <set>-test.zarr, or has them ready; beside a ready one may lie what
`extract --json` printed, as <set>-train.json, which says how long it took.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

import accuracy_lora as lora
import numpy as np
import torch
from accuracy_data import part, seconds_of, shots
from accuracy_results import ALL, TITLES, Result, Results, packed, parse, report
from numpy.typing import NDArray
from timing import free_memory
from torch import nn

import losa_cache as lc
from losa_cache.compare.predictions import predictions
from losa_cache.errors import UserError
from losa_cache.files import append
from losa_cache.machine.device import machine
from losa_cache.train.config import TrainConfig
from losa_cache.train.sampler import hold_out

SETS = ("textures10", "flowers5", "cifar10", "brain_mri4", "bccd_count4")


@dataclass(frozen=True)
class Task:
    """What one method is trained and tested on.

    Attributes:
        train: a cache of the training images.
        test: a cache of the test images.
        images: gives the training and the test images in memory, for methods inside the backbone.
        seed: of the training.
        epochs: of every training; ``None``: each method's own.
        work: an empty folder.
    """

    train: lc.ActivationCache
    test: lc.ActivationCache
    images: Callable[[], tuple[lora.Images, lora.Images]]
    seed: int
    epochs: int | None
    work: Path


@dataclass(frozen=True)
class Outcome:
    """What a method came to; ``correct`` in the order of the test images' ids."""

    correct: NDArray[np.bool_]
    parameters: int
    seconds: float
    chosen: dict[str, Any]


def auto(cache: lc.ActivationCache, **options: Any) -> lc.TrainResult:
    """Choose options, then train."""
    return lc.train_auto(cache, **options).trained


def side(task: Task, train: Callable[..., lc.TrainResult] = lc.train, **options: Any) -> Outcome:
    """Train a side network from the cache, and test it."""
    own = options if task.epochs is None else {"epochs": task.epochs} | options
    started = perf_counter()
    result = train(task.train, out=task.work / "run", seed=task.seed, **own)
    seconds = perf_counter() - started
    found = predictions(result.run, task.test, device=None, progress=lambda share: None)
    return Outcome(found.correct, sum(found.parameters.values()), seconds, {})


@lru_cache(maxsize=1)
def probed(train: str, test: str, seed: int) -> lc.ProbeResult:
    """Probe a cache once for all lines that are asked for."""
    with tempfile.TemporaryDirectory() as folder:
        return lc.probe(train, test=test, seed=seed, out=Path(folder) / "probe")


def probe(task: Task, line: str) -> Outcome:
    """Tune regressions on features of the cache, and test the better one: a line that a probe's record names.

    Of a probe's seconds count those of reading and of the line.
    """
    found = probed(str(task.train.path), str(task.test.path), task.seed)
    own = getattr(found.record, line)
    order = sorted(range(len(found.test_ids)), key=found.test_ids.__getitem__)
    correct = (found.predicted[own.name] == found.test_labels)[order].numpy()
    parameters = (own.features + 1) * len(task.train.manifest.classes)
    chosen = {"line": own.name, "C": own.c}
    return Outcome(correct, parameters, found.record.seconds_reading + own.seconds, chosen)


def within(task: Task) -> Outcome:
    """Test the probe that the default fits before its first epoch, without the side network beside it.

    The seconds count an epoch of a small side network, too.
    """
    started = perf_counter()
    done = lc.train(task.train, out=task.work / "run", rank=1, epochs=1, val_fraction=0, seed=task.seed)
    seconds = perf_counter() - started
    adapter = lc.load_adapter(done.run)
    for tensor in adapter.adapter.classifier.parameters():
        nn.init.zeros_(tensor)
    right: dict[str, bool] = {}
    with (
        torch.inference_mode(),
        lc.batches(task.test, points=adapter.points, shuffle=False, residency="disk") as batches,
    ):
        for batch in batches:
            right |= zip(batch.ids, (adapter(batch.blocks).argmax(1) == batch.labels).tolist(), strict=True)
    probe = adapter.adapter.probe
    assert probe is not None
    return Outcome(
        np.array([right[name] for name in sorted(right)]), probe.weight.numel() + len(probe.bias), seconds, {}
    )


def inside(task: Task) -> Outcome:
    """Train LoRA inside the backbone, and test it."""
    train, test = task.images()
    ids = task.train.sample_ids
    fit, held = hold_out(task.train.samples, ids, TrainConfig.val_fraction)
    found = lora.tuned(
        train,
        test,
        fit=[ids[sample] for sample in fit.tolist()],
        held_out=[ids[sample] for sample in held.tolist()],
        test_ids=sorted(task.test.sample_ids[sample] for sample in task.test.samples.tolist()),
        epochs=task.epochs or lora.EPOCHS,
        seed=task.seed,
    )
    return Outcome(found.correct, found.parameters, found.seconds, found.chosen)


METHODS: dict[str, Callable[[Task], Outcome]] = {
    "probe-last": lambda task: probe(task, "last_layer"),
    "probe-all": lambda task: probe(task, "all_layers"),
    "probe-within": within,
    "fusion": lambda task: side(task, side="fusion"),
    "attentive": lambda task: side(task, side="attentive"),
    "losa-paper": lambda task: side(task, recipe="paper"),
    "losa": side,
    "losa-auto": lambda task: side(task, train=auto),
    "lora": inside,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--caches", type=Path, help="folder to keep caches in; default: a temporary one")
    parser.add_argument("--out", type=Path, default=Path("accuracy.jsonl"))
    parser.add_argument("--only", nargs="*", choices=TITLES, default=list(TITLES), metavar="METHOD")
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shots", nargs="*", default=["all", "5", "20", "100"], help="images a class, or all")
    parser.add_argument("--epochs", type=int, help="passes of every method that has epochs; default: each method's own")
    parser.add_argument("--report", action="store_true", help="print the tables of --out and train nothing")
    arguments = parser.parse_args()
    setting = {name: getattr(arguments, name) for name in ("backbone", "img_size", "epochs")}
    arguments.weights = arguments.weights if arguments.weights == "pretrained" else os.path.abspath(arguments.weights)
    if not arguments.report:
        with tempfile.TemporaryDirectory(dir=".") as work:
            arguments.caches = arguments.caches or Path(work)
            os.environ["LOSA_CACHE_HOME"] = str(arguments.caches / "home")  # no cache of the user's in sight
            for name in arguments.sets:
                measure(arguments, setting, name, Path(work))
    found = [result for result in _read(arguments.out) if result.setting == setting]
    print(report(Results(found)))


def measure(arguments: argparse.Namespace, setting: dict[str, Any], name: str, work: Path) -> None:
    """Add a set's results that are not there yet."""
    done = {result.key for result in _read(arguments.out) if result.error is None}
    wanted = [
        Result(setting, name, method, ALL if count == "all" else int(count), seed)
        for count in arguments.shots
        for seed in range(arguments.seeds)
        for method in arguments.only
    ]
    left = [result for result in wanted if result.key not in done]
    if not left:
        return
    source = {"data_dir": arguments.data_dir / name, "weights": arguments.weights, "img_size": arguments.img_size}
    train, test = (_cache(arguments, source, name, split) for split in ("train", "test"))
    took, loaded = seconds_of(train), _once(lambda: _images(arguments.backbone, source))
    for count, seed in dict.fromkeys((result.shots, result.seed) for result in left):
        with tempfile.TemporaryDirectory(dir=work) as folder:
            chosen = None if count == ALL else shots(train, count, seed)
            if count != ALL and chosen is None:
                continue  # it would be all images
            own = train if chosen is None else part(train, chosen, Path(folder) / "part.zarr")
            share = len(own.samples) / len(train.samples)
            for result in left:
                if (result.shots, result.seed) == (count, seed):
                    place = Path(folder) / result.method
                    place.mkdir()
                    task = Task(own, test, loaded, seed, arguments.epochs, place)
                    extracted = 0.0 if result.method == "lora" else None if took is None else took * share
                    found = replace(_try(result, task), extract_seconds=extracted)
                    append(arguments.out, found.line().encode())
                    _tell(found)
                    free_memory()


def _try(result: Result, task: Task) -> Result:
    """Run a method; what it refuses is its result."""
    try:
        found = METHODS[result.method](task)
    except UserError as error:
        return replace(result, error=str(error), machine=machine())
    return replace(
        result,
        correct=packed(found.correct),
        images=len(found.correct),
        parameters=found.parameters,
        seconds=found.seconds,
        chosen=found.chosen,
        machine=machine(),
    )


def _cache(arguments: argparse.Namespace, source: dict[str, Any], name: str, split: str) -> lc.ActivationCache:
    path = arguments.caches / f"{name}-{split}.zarr"
    if path.with_suffix(".json").exists():
        return lc.open_cache(path)
    return lc.extract(arguments.backbone, "folder", split=split, out=path, **source)


def _images(backbone: str, source: dict[str, Any]) -> tuple[lora.Images, lora.Images]:
    train = lora.load_images(backbone, split="train", **source)
    return train, lora.load_images(train.backbone, split="test", data_dir=source["data_dir"])


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    """Make something when it is first asked for."""
    made: list[Any] = []

    def get() -> Any:
        if not made:
            made.append(make())
        return made[0]

    return get


def _read(path: Path) -> list[Result]:
    return parse(path.read_text()) if path.exists() else []


def _tell(result: Result) -> None:
    figures = result.error or f"{100 * result.hits().mean():.1f} %, {result.seconds:.0f} s {result.chosen or ''}"
    name = f"{result.dataset}, {result.shots or 'all'} shots, seed {result.seed}, {TITLES[result.method]}"
    print(f"{name}: {figures}", flush=True)


if __name__ == "__main__":
    main()

"""What LoSA is worth in segmentation: linear decoders on the last layer and on all layers beside LoSA, and the time.

    python benchmarks/dense.py --data DATA_DIR --weights FILE [--caches FOLDER] [--out dense.jsonl]

DATA_DIR holds train/ and val/, each with images/ and masks/ (CamVid: numbers of 11 classes; --ignore 11 stands for no
class). Every method has the same decoder, epochs and batches. Its learning rate is chosen from --rates by the mean IoU
on a fifth of the training images, with seed 0; then it is trained on all of them with every seed, and tested once on
val. The times are those of an epoch without validation: of the same side network on a classification task from the same
cache (is a class in the image?), and of a sweep of --trials rates together and one by one.

Every result is a line of --out. The benchmark goes on where it was interrupted.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from timing import free_memory

import losa_cache as lc
from losa_cache.files import append
from losa_cache.machine.device import machine
from losa_cache.targets.add import add_targets
from losa_cache.targets.target_set import CLASS, TargetSet
from losa_cache.train.config import TrainConfig

METHODS: dict[str, dict[str, Any]] = {
    "linear-last": {"side": "linear", "head": "last"},
    "linear-all": {"side": "linear", "head": "all"},
    "losa-8": {"side": "losa", "rank": 8, "head": "all"},
    "losa-16": {"side": "losa", "rank": 16, "head": "all"},
}
TUNED_ON = 0.2  # of the training images
TIMED_EPOCHS = 3


@dataclass(frozen=True)
class Setting:
    """What results that are compared have in common."""

    size: int
    decoder: str
    epochs: int
    batch_size: int
    precision: str

    def config(self, **options: Any) -> TrainConfig:
        """Give the options of a run."""
        own: dict[str, Any] = {"decoder": self.decoder, "epochs": self.epochs, "batch_size": self.batch_size}
        return TrainConfig(**({"task": "segmentation", "targets": "masks"} | own | options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--caches", type=Path, help="folder to keep caches in; default: a temporary one")
    parser.add_argument("--out", type=Path, default=Path("dense.jsonl"))
    parser.add_argument("--ignore", type=int, default=11, help="value of the masks that stands for no class")
    parser.add_argument("--sizes", nargs="*", type=int, default=[224, 448])
    parser.add_argument("--precision", default="bfloat16", help="precision of the caches")
    parser.add_argument("--decoders", nargs="*", default=["linear", "conv"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", nargs="*", type=float, default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--trials", type=int, default=8, help="trials of the timed sweep; 0: nothing is timed")
    arguments = parser.parse_args()
    weights = arguments.weights if arguments.weights == "pretrained" else os.path.abspath(arguments.weights)
    with tempfile.TemporaryDirectory(dir=".") as work:
        caches = arguments.caches or Path(work)
        os.environ["LOSA_CACHE_HOME"] = str(caches / "home")  # no cache of the user's in sight
        for size in arguments.sizes:
            train, val = (
                _cache(arguments, caches, split, weights=weights, img_size=size) for split in ("train", "val")
            )
            for decoder in arguments.decoders:
                setting = Setting(size, decoder, arguments.epochs, arguments.batch_size, arguments.precision)
                for method in arguments.methods:
                    compare(arguments, setting, method, train, val)
                if arguments.trials:
                    measure(arguments, setting, train)


def compare(
    arguments: argparse.Namespace, setting: Setting, method: str, train: lc.ActivationCache, val: lc.ActivationCache
) -> None:
    """Choose a method's rate, train it with every seed, and test it."""
    tried = {}
    for rate in arguments.rates if len(arguments.rates) > 1 else ():
        config = setting.config(**METHODS[method], lr=rate, val_fraction=TUNED_ON)
        key = {"part": "tuning", "method": method, "lr": rate}
        tried[rate] = _once(arguments.out, setting, key, lambda config=config: _held_out(train, config))["miou"]
    rate = max(tried, key=lambda own: tried[own]) if tried else arguments.rates[0]
    for seed in range(arguments.seeds):

        def tested(seed: int = seed) -> dict[str, Any]:
            config = setting.config(**METHODS[method], lr=rate, seed=seed, val_fraction=0.0)
            with _folder() as folder:
                result = lc.train(train, config=config, out=folder / "run")
                figures = lc.evaluate_run(result.run, cache=val.path)
            ious = {line["class"]: line["iou"] for line in figures["tables"]["classes"]}
            whole = {name: figures[name] for name in ("miou", "pixel_accuracy", "loss")}
            return whole | {"iou": ious} | result.parameters

        _once(arguments.out, setting, {"part": "test", "method": method, "seed": seed, "lr": rate}, tested)


def _held_out(train: lc.ActivationCache, config: TrainConfig) -> dict[str, Any]:
    with _folder() as folder:
        metrics = lc.train(train, config=config, out=folder / "run").metrics
    return {"miou": metrics["val_miou"], "pixel_accuracy": metrics["val_pixel_accuracy"]}


def measure(arguments: argparse.Namespace, setting: Setting, train: lc.ActivationCache) -> None:
    """Time epochs: of each method, of LoSA on classes, and of trials that train together."""
    short = replace(setting, epochs=TIMED_EPOCHS)
    for method, options in METHODS.items():
        for task in ("segmentation", "classification"):
            config = short.config(**options, task=task, targets={"segmentation": "masks"}.get(task, "there"))
            config = replace(config, val_fraction=0.0)
            key = {"part": "epoch", "method": method, "task": task}
            _once(arguments.out, setting, key, lambda config=config: {"seconds": _epoch(train, config)})
    together = {"part": "sweep", "method": "losa-8", "trials": arguments.trials}
    _once(arguments.out, setting, together, lambda: {"seconds": _sweep(train, short, arguments.trials)})


def _epoch(train: lc.ActivationCache, config: TrainConfig) -> float:
    """Give the median seconds of the epochs behind the first."""
    seconds: list[float] = []
    with _folder() as folder:
        lc.train(train, config=config, out=folder / "run", report=lambda line: seconds.append(line["train_seconds"]))
    return statistics.median(seconds[1:])


def _sweep(train: lc.ActivationCache, setting: Setting, trials: int) -> float:
    """Give the median seconds of an epoch of so many trials together, behind the first."""
    config = setting.config(**METHODS["losa-8"], val_fraction=TUNED_ON)
    rates = np.geomspace(3e-4, 3e-3, trials).tolist()
    with _folder() as folder:
        lc.sweep(train, space={"lr": rates}, config=config, out=folder / "sweep")
        lines = (folder / "sweep/trials/0000/metrics.jsonl").read_text().splitlines()
    return statistics.median(json.loads(line)["train_seconds"] for line in lines[1:])


def _cache(arguments: argparse.Namespace, caches: Path, split: str, **options: Any) -> lc.ActivationCache:
    """Open a split's cache, or extract it and add masks, and whether the rarest class is in each image."""
    path = caches / f"{split}-{options['img_size']}-{arguments.precision}.zarr"
    images = caches / "images"
    (images / split).mkdir(parents=True, exist_ok=True)
    if not (images / split / "all").exists():  # data sets of folders have folders of classes: one
        (images / split / "all").symlink_to((arguments.data / split / "images").resolve())
    common = {"precision": arguments.precision, "data_dir": images, "split": split, "out": path}
    cache = lc.extract(arguments.backbone, "folder", **common, **options)
    if "there" in cache.target_kinds:
        return cache
    masks = add_targets(cache, arguments.data / split / "masks", name="masks", ignore=arguments.ignore)
    share = np.stack([[(mask == number).any() for number in range(len(masks.names))] for mask in masks.values])
    rare = int(np.abs(share.mean(0) - 0.5).argmin())
    add_targets(cache, TargetSet("there", CLASS, ["absent", "there"], share[:, rare].astype(np.int64)))
    return lc.open_cache(path)


def _once(out: Path, setting: Setting, key: dict[str, Any], measured: Any) -> dict[str, Any]:
    """Give a result that is in the file, or measure it and write it there."""
    key = vars(setting) | key
    for line in out.read_text().splitlines() if out.exists() else []:
        if (known := json.loads(line)).items() >= key.items():
            return known
    found = key | measured() | {"machine": machine()}
    free_memory()
    line = json.dumps(found)
    append(out, f"{line}\n".encode())
    print(line, flush=True)
    return json.loads(line)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        yield Path(folder)


if __name__ == "__main__":
    main()

"""Tasks other than one class an image, from caches that exist: numbers against classes, and several labels an image.

    python benchmarks/tasks.py cells DATA_DIR --caches FOLDER
    python benchmarks/tasks.py labels DATA_DIR --caches FOLDER

``cells``: red cells of DATA_DIR/bccd_count4 are counted. The counts of ``counts.csv`` are learned as numbers, and the
ranges of its folders as ordered and as plain classes, from the same caches. A predicted count lies in a range, so all
three are held to the same accuracy; a range stands for the mean count of its training images, so all three have an
error in cells. ``labels``: which classes of DATA_DIR/camvid cover at least a hundredth of an image is learned as
several labels.

FOLDER holds the caches SET-train.zarr and SET-test.zarr (bccd_count4, camvid) of the images of DATA_DIR, extracted by
``losa-cache extract``. They are copied before targets are added. Every line is the mean and the standard deviation over
--seeds.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

import losa_cache as lc
from losa_cache.cache.location import locate
from losa_cache.cache.storage import receipts_of
from losa_cache.cache.store import open_cache
from losa_cache.machine.device import machine
from losa_cache.targets.target_set import IGNORED, MASK, MULTILABEL, TargetSet
from losa_cache.train.evaluate_run import evaluated

SPLITS = ("train", "test")
LEAST = 0.01  # share of an image that a class covers to be one of its labels
SIDES: dict[str, dict[str, Any]] = {
    "linear, last layer": {"side": "linear"},
    "fusion, all layers": {"side": "fusion"},
    "LoSA rank 8": {"rank": 8},
    "LoSA rank 16": {"rank": 16},
}


def copied(folder: Path, name: str, work: Path) -> list[lc.ActivationCache]:
    """Copy the caches of a set, which may be links."""
    found = []
    for split in SPLITS:
        cache, copy = open_cache(folder / f"{name}-{split}.zarr"), work / f"{name}-{split}.zarr"
        shutil.copytree(str(cache.path), copy)
        shutil.copytree(str(cache.receipts), str(receipts_of(locate(copy))))
        found.append(open_cache(copy))
    return found


def train_and_test(
    caches: list[lc.ActivationCache], work: Path, seeds: int, **options: Any
) -> tuple[list[Any], list[float]]:
    """Train with each seed, and evaluate on the test cache: what was found, and the seconds of the training."""
    results, seconds = [], []
    for seed in range(seeds):
        started = perf_counter()
        run = lc.train(caches[0], out=work / f"run-{len(list(work.glob('run-*')))}", seed=seed, **options).run
        seconds.append(perf_counter() - started)
        results.append(evaluated(run, cache=caches[1].path))
    return results, seconds


def tell(method: str, figures: dict[str, list[float]], seconds: list[float]) -> None:
    """Print a line of JSON: means, and standard deviations behind ``_sd``."""
    line: dict[str, Any] = {"method": method, "seeds": len(seconds), "seconds": round(statistics.median(seconds), 1)}
    for name, values in figures.items():
        line |= {name: round(statistics.fmean(values), 3), f"{name}_sd": round(float(np.std(values, ddof=1)), 3)}
    print(json.dumps(line), flush=True)


def cells(data: Path, caches: Path, seeds: int, work: Path) -> None:
    """Count cells as numbers, as ordered classes and as classes."""
    pair = copied(caches, "bccd_count4", work)
    for cache in pair:
        lc.add_targets(
            cache, data / "bccd_count4" / "counts.csv", task="regression", columns=["red_cells"], subset=True
        )
    pair = [open_cache(cache.path) for cache in pair]
    (name,) = [name for name in pair[0].target_kinds if name != "labels"]
    counts = [cache.target_set(name).values[:, 0] for cache in pair]
    labels = pair[0].target_set("labels").values
    middle = np.array([counts[0][labels == number].mean() for number in range(len(pair[0].manifest.classes))])
    ends = np.array([int(own.partition("-")[2]) for own in pair[0].manifest.classes])
    true = dict(zip(pair[1].sample_ids, counts[1], strict=True))

    def judged(found: Any, number: Callable[[NDArray[Any]], NDArray[Any]]) -> tuple[float, float]:
        decided = found.task.decided(found.outcome.predictions).numpy()
        count, truth = number(decided), np.array([true[name] for name in found.outcome.ids])
        places = [np.searchsorted(ends, np.rint(own)).clip(max=len(ends) - 1) for own in (count, truth)]
        return float(np.abs(count - truth).mean()), 100 * float((places[0] == places[1]).mean())

    kinds: dict[str, tuple[dict[str, Any], Callable[[NDArray[Any]], NDArray[Any]]]] = {
        "numbers": ({"task": "regression"}, lambda predicted: predicted[:, 0]),
        "ordered classes": ({"task": "ordinal"}, lambda predicted: middle[predicted]),
        "classes": ({}, lambda predicted: middle[predicted]),
    }
    for side, options in SIDES.items():
        for kind, (task, number) in kinds.items():
            results, seconds = train_and_test(pair, work, seeds, **options, **task)
            errors, shares = zip(*(judged(found, number) for found in results), strict=True)
            more = {"r2": [found.figures["r2"] for found in results]} if kind == "numbers" else {}
            tell(f"{side}: {kind}", {"cells_off": list(errors), "range_top1": list(shares)} | more, seconds)


def labels(data: Path, caches: Path, seeds: int, work: Path) -> None:
    """Learn which classes an image shows."""
    pair = copied(caches, "camvid", work)
    names = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
    for split, cache in zip(("train", "val"), pair, strict=True):
        folder = data / "camvid" / split
        masks = lc.add_targets(
            cache, folder / "masks", name="masks", task="segmentation", ignore=11, data_dir=folder / "images"
        )
        assert masks.kind == MASK
        known = (masks.values != IGNORED).sum((1, 2))
        share = np.stack([(masks.values == number).sum((1, 2)) / known for number in range(len(names))], 1)
        lc.add_targets(cache, TargetSet("shows", MULTILABEL, names, (share >= LEAST).astype(np.int8)))
    pair = [open_cache(cache.path) for cache in pair]
    shown = [
        dict(zip(names, cache.target_set("shows").values.mean(0).round(2).tolist(), strict=True)) for cache in pair
    ]
    print(json.dumps({"share_of_images": dict(zip(SPLITS, shown, strict=True))}))
    for side, options in SIDES.items():
        for loss in ("cross-entropy", "asymmetric"):
            results, seconds = train_and_test(pair, work, seeds, task="multilabel", loss=loss, **options)
            tell(f"{side}: {loss}", {"map": [found.figures["map"] for found in results]}, seconds)


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cells", "labels"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--caches", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps({"machine": machine()}))
    with tempfile.TemporaryDirectory() as folder:
        {"cells": cells, "labels": labels}[options.what](options.data, options.caches, options.seeds, Path(folder))


if __name__ == "__main__":
    main()

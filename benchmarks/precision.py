"""What a precision costs: bytes, error, encoding and decoding, and the accuracy of LoSA trained on it.

    python benchmarks/precision.py DATA_DIR --weights FILE [--layers all] [--pool avg] [--reference FOLDER]

DATA_DIR holds train/ and test/ of class folders. Block outputs are extracted once, in bfloat16, and stored anew in each
precision, fitted to the first images as an extraction does. The same LoSA is trained on all training images in that
precision, with each seed, and tested after the last epoch on test images in bfloat16 and in that precision.

Encoding and decoding are timed beside each other on the first images, medians of three. ``--pool`` puts another pooling
behind the frozen norm than the backbone's own; ``--reference`` keeps the bfloat16 caches in a folder for the next run.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import labelled
import numpy as np
import torch
from torch import Tensor

import losa_cache as lc
from losa_cache.cache.layout import plan_layout
from losa_cache.cache.precision import EncodedBatch, Encoding, get_precision
from losa_cache.cache.reader import BlockReader
from losa_cache.cache.shard import pack
from losa_cache.cache.writer import CacheWriter, lock_cache
from losa_cache.calibrate import AT_ONCE, SHARE, Calibration, thinned

BATCH, TIMED = 50, 50
DEFAULT = ["bfloat16", "int8", "int4", "predict:2", "predict:1", "predict:0.5", "predict:0.25"]


def main() -> None:
    parser = labelled.parser(__doc__, seeds=3)
    parser.add_argument("--precisions", nargs="*", default=DEFAULT)
    parser.add_argument("--pool", default=None, choices=["token", "avg"])
    parser.add_argument("--reference", type=Path)
    labelled.run(parser.parse_args(), compare)


def compare(arguments: argparse.Namespace, work: Path) -> None:
    """Print a line a precision as it ends."""
    print(labelled.title(arguments), arguments.pool or "own pooling")
    plain = {
        split: lc.extract(
            arguments.backbone,
            "folder",
            layers=arguments.layers,
            out=(arguments.reference or work) / f"{arguments.data_dir.name}-{split}.zarr",
            split=split,
            **labelled.source(arguments),
        )
        for split in ("train", "test")
    }
    calibration = {split: calibrate(cache, get_precision("predict:1").images) for split, cache in plain.items()}
    for name in arguments.precisions:
        encodings = {split: calibration[split].fit(get_precision(name)) for split in plain}
        stored = {
            split: store(cache, encodings[split], work / f"{name}-{split}.zarr", pool=arguments.pool)
            for split, cache in plain.items()
        }
        reference = store(
            plain["test"], get_precision("bfloat16").fit([], tokens=1, prefix=0), work / f"{name}-plain.zarr",
            pool=arguments.pool,
        )  # fmt: skip
        found: dict[str, list[float]] = {"plain": [], "encoded": []}
        for seed in range(arguments.seeds):
            options = {"rank": arguments.rank, "epochs": arguments.epochs, "val_fraction": 0, "seed": seed}
            run = lc.train(stored["train"], out=work / f"{name}-{seed}", **options).run
            for kind, cache in (("plain", reference), ("encoded", stored["test"])):
                found[kind].append(lc.evaluate_run(run, cache=cache.path)["top1"])
        _report(name, stored["train"], stored["test"], plain["test"], found)


def calibrate(cache: lc.ActivationCache, images: int) -> Calibration:
    """Take from a cache what an extraction would look at first."""
    count = max(AT_ONCE, min(images, len(cache.samples) // SHARE))
    blocks = next(batches(cache, count))[1]
    tokens, prefix = cache.manifest.tokens["total"], cache.manifest.tokens["prefix"]
    kept = thinned(tokens, prefix, torch.Generator().manual_seed(0))
    return Calibration(
        [block[:AT_ONCE].float() for block in blocks], [block[:, kept] for block in blocks], tokens, prefix
    )


def batches(cache: lc.ActivationCache, size: int) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield the first row of each batch, and its values."""
    encoding, reader = cache.encoding(), BlockReader(cache, cache.manifest.points)
    rows = cache.layout.samples
    for first in range(0, rows, size):
        count = min(size, rows - first)
        shape = (count, *cache.layout.shape[2:])
        planes = [torch.empty(shape, dtype=cache.precision.stored_dtype) for _ in reader.positions]
        reader.read(np.arange(first, first + count), planes)
        yield first, encoding.decode(planes)
    reader.close()


def store(cache: lc.ActivationCache, encoding: Encoding, out: Path, *, pool: str | None) -> lc.ActivationCache:
    """Store a cache in another precision, and with another pooling."""
    manifest = cache.manifest
    planes, tokens, columns = encoding.stored_shape(*manifest.shape)
    layout = plan_layout(
        samples=cache.layout.samples,
        layers=planes,
        tokens=tokens,
        columns=columns,
        itemsize=encoding.precision.itemsize,
    )
    manifest = replace(
        manifest,
        fields=manifest.fields | {"precision": encoding.precision.name},
        tail=manifest.tail | ({} if pool is None else {"pool": pool}),
        encoding=encoding.describe() | {"compressed": None},
        complete=False,
    )
    with (
        lock_cache(out) as lock,
        CacheWriter.create(
            lock,
            manifest,
            layout,
            encoding,
            labels=cache.labels,
            ids=cache.ids,
            tail=cache.tail_tensors(),
        ) as writer,
    ):
        for first, blocks in batches(cache, BATCH):
            values = EncodedBatch.of(encoding, blocks).stored.view(torch.uint8).numpy()
            for row, sample in enumerate(values, start=first):
                writer.append(row, pack(sample, layout))
        return writer.finish()


def _report(
    name: str,
    train: lc.ActivationCache,
    test: lc.ActivationCache,
    plain: lc.ActivationCache,
    found: dict[str, list[float]],
) -> None:
    size = sum(train.shard_sizes().values()) / train.layout.samples
    values = int(np.prod(train.manifest.shape))
    encoding = test.encoding()
    blocks = next(batches(plain, TIMED))[1]
    encoded = EncodedBatch.of(encoding, blocks)
    planes = list(encoded.stored.unbind(1))
    seconds = [_median(lambda: EncodedBatch.of(encoding, blocks)), _median(lambda: encoding.decode(planes))]
    errors = [
        float((own.float() - block.float()).norm() / block.float().norm())
        for own, block in zip(encoding.decode(planes), blocks, strict=True)
    ]
    print(
        f"  {name:<12} {size / 1e3:8.1f} kB a sample, {8 * size / values:.3f} bits a value; errors",
        " ".join(f"{100 * error:.2g}" for error in errors),
        f"%; encode {1e3 * seconds[0] / TIMED:.2f}, decode {1e3 * seconds[1] / TIMED:.2f} ms a sample",
    )
    for kind, accuracies in found.items():
        listed = " / ".join(f"{accuracy:.2f}" for accuracy in accuracies)
        print(f"    top-1, test {kind:<8} {listed} %, mean {statistics.mean(accuracies):.2f}", flush=True)


def _median(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(4):
        started = perf_counter()
        work()
        taken.append(perf_counter() - started)
    return statistics.median(taken[1:])


if __name__ == "__main__":
    main()

"""What a precision costs: bytes, error, and the accuracy of LoSA trained on it.

    python benchmarks/precision.py DATA_DIR --weights FILE [--backbone vit_small_patch14_dinov2] [--layers 4]

DATA_DIR holds train/ and test/ of class folders. For each precision the same LoSA is trained on all training images,
with each seed, and tested once, after the last epoch, on test images stored as bfloat16.
"""

import argparse
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

import labelled

import losa_cache as lc
from losa_cache.cache.precision import PRECISIONS
from losa_cache.calibrate import block_sample
from losa_cache.device import choose_device, default_workers
from losa_cache.inputs import open_inputs


def main() -> None:
    parser = labelled.parser(__doc__, seeds=3)
    parser.add_argument("--precisions", nargs="*", default=["bfloat16", "int8", "int4"])
    labelled.run(parser.parse_args(), compare)


def compare(arguments: argparse.Namespace, work: Path) -> None:
    """Print the errors of every layer, then a line a precision as it ends."""
    source = labelled.source(arguments)
    print(labelled.title(arguments))
    inputs = open_inputs(arguments.backbone, "folder", device=choose_device(), **source)
    blocks = block_sample(inputs, workers=default_workers())
    print(f"  relative error of every layer, in per cent, on {len(blocks[0])} images")
    for name, precision in PRECISIONS.items():
        encoding = precision.fit(blocks)
        errors = [
            float((encoding.rounded(layer, block).float() - block).norm() / block.norm())
            for layer, block in enumerate(blocks)
        ]
        print(f"    {name:<9}", *(f"{100 * error:.2g}" for error in errors))

    def cache(name: str, **options: Any) -> lc.ActivationCache:
        out = work / f"{name}.zarr"
        return lc.extract(arguments.backbone, "folder", layers=arguments.layers, out=out, **source, **options)

    test = cache("test", split="test")
    for name in arguments.precisions:
        train = cache(name, precision=name)
        size = sum(train.shard_sizes().values())
        accuracies, seconds = [], []
        for seed in range(arguments.seeds):
            started = perf_counter()
            run = lc.train(
                train,
                rank=arguments.rank,
                epochs=arguments.epochs,
                val_fraction=0,
                seed=seed,
                out=work / f"{name}-{seed}",
            )
            seconds.append(perf_counter() - started)
            accuracies.append(lc.evaluate_run(run.run, cache=test.path)["top1"])
        print(
            f"  {name:<9} {size / train.layout.samples / 1e6:.3f} MB a sample "
            f"({train.layout.sample_bytes / 1e6:.3f} plain), test top-1",
            " / ".join(f"{accuracy:.1f}" for accuracy in accuracies),
            f"%, mean {statistics.mean(accuracies):.1f}, {statistics.median(seconds):.0f} s a run",
            flush=True,
        )


if __name__ == "__main__":
    main()

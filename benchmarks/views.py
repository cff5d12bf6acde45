"""What augmentation is worth: one plain view, V views in the cache, a fresh share of every batch, all fresh.

    python benchmarks/views.py DATA_DIR --weights FILE [--backbone vit_small_patch14_dinov2] [--layers 4]

DATA_DIR holds train/ and test/ of class folders. Every arm trains the same LoSA on all training images, for the same
epochs, with each seed, and is tested once, after the last epoch, on plain test images.
"""

import argparse
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

import labelled

import losa_cache as lc

PARTS = {part: f"train_seconds_{part}" for part in ("read", "decode", "backbone")}  # the rest is the side network


def main() -> None:
    parser = labelled.parser(__doc__, seeds=2)
    parser.add_argument("--views", type=int, nargs="*", default=[4, 8])
    parser.add_argument("--augment", default="rand-m9-mstd0.5-inc1")
    labelled.run(parser.parse_args(), compare)


def compare(arguments: argparse.Namespace, work: Path) -> None:
    """Run every arm and print a line as it ends."""
    source = labelled.source(arguments)

    def cache(name: str, **options: Any) -> Path:
        out = work / f"{name}.zarr"
        lc.extract(arguments.backbone, "folder", layers=arguments.layers, out=out, **source, **options)
        return out

    def online(**options: Any) -> lc.OnlineConfig:
        return lc.OnlineConfig(arguments.backbone, "folder", augment=arguments.augment, **source, **options)

    test, plain = cache("test", split="test"), cache("plain")
    views = {v: cache(f"views{v}", views=v, augment=arguments.augment) for v in arguments.views}
    arms: dict[str, dict[str, Any]] = {
        "linear probe, plain": {"cache": plain, "side": "linear"},
        "LoSA, plain": {"cache": plain},
        **{f"LoSA, {v} views": {"cache": path} for v, path in views.items()},
        "LoSA, plain and a quarter fresh": {"cache": plain, "online": online(share=0.25)},
        "LoSA, online": {"online": online()},
    }
    print(labelled.title(arguments))
    for name, options in arms.items():
        accuracies, seconds = [], []
        for seed in range(arguments.seeds):
            started = perf_counter()
            run = lc.train(
                **options,
                rank=arguments.rank,
                layers=arguments.layers,
                epochs=arguments.epochs,
                val_fraction=0,
                seed=seed,
                out=work / f"{name}-{seed}",
            )
            seconds.append(perf_counter() - started)
            accuracies.append(lc.evaluate_run(run.run, cache=test)["top1"])
            epoch = run.metrics
        figures = " / ".join(f"{accuracy:.1f}" for accuracy in accuracies)
        parts = [f"{part} {epoch[key] / epoch['train_seconds']:.0%}" for part, key in PARTS.items() if key in epoch]
        print(
            f"  {name:<32} test top-1 {figures} %, {statistics.median(seconds):.0f} s a run, of the last epoch:", *parts
        )


if __name__ == "__main__":
    main()

"""Decoding and augmentation alone: images/s by threads, by processes, and by one thread.

    python benchmarks/decode.py [--images 512] [--workers 2] [--repeats 3]

Synthetic 480 x 360 JPEGs to 224 px; nothing trains meanwhile. Augmentation by threads is not offered, since timm draws
from process-wide generators; one thread is what a lock around it would leave of them.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

from stages import make_images

from losa_cache.data.decode import Decoder, View
from losa_cache.data.request import Request
from losa_cache.data.sources.folder import load
from losa_cache.data.transforms import InputSpec

SPEC = InputSpec((3, 224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "center")
POLICY, BATCH = "rand-m9-mstd0.5-inc1", 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as work:
        make_images(Path(work), arguments.images)
        samples = load(Request(work, "train"))
        roads = {
            f"plain, {arguments.workers} threads": Decoder(samples, SPEC, workers=arguments.workers),
            "plain, 1 thread": Decoder(samples, SPEC, workers=1),
            f"{POLICY}, {arguments.workers} processes": Decoder(
                samples, SPEC, workers=arguments.workers, augment=POLICY
            ),
            f"{POLICY}, 1 process": Decoder(samples, SPEC, workers=1, augment=POLICY),
        }
        rates: dict[str, list[float]] = {road: [] for road in roads}
        for epoch in range(arguments.repeats + 1):  # the first starts threads and processes
            for road, decoder in roads.items():
                starts = range(0, len(samples), BATCH)
                plan: list[list[View]] = [
                    [(i, epoch) for i in range(at, min(at + BATCH, len(samples)))] for at in starts
                ]
                started = perf_counter()
                for _ in decoder.batches(plan):
                    pass
                rates[road].append(len(samples) / (perf_counter() - started))
        for road, found in rates.items():
            print(f"{road:<40}{statistics.median(found[1:]):8.0f} images/s")
        for decoder in roads.values():
            decoder.close()


if __name__ == "__main__":
    main()

"""Epochs of LoSA from a cache that lies in a GPU's memory, in the host's, in both, or on the disk.

    python benchmarks/residency.py [--backbone vit_h] [--images 768]

The cache holds the same few random samples again and again, in bfloat16 (ViT-H: 21 MB an image), for nothing depends on
their values; it is written as an extraction writes it. An epoch is what ``losa-cache train`` runs, rank 16. "Partial"
keeps half of the cache in the device's memory. "Disk" reads out of the page cache, "cold disk" does not.
"""

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from made_up import noise_images, random_backbone
from stages import Figures, cached_source, drop_pages, epochs

from losa_cache import open_cache
from losa_cache.cache.precision import get_precision
from losa_cache.cache.shard import pack
from losa_cache.cache.writer import CacheWriter, lock_cache
from losa_cache.extract.create_cache import plan_store
from losa_cache.inputs import open_inputs
from losa_cache.machine.device import choose_device, machine
from losa_cache.sidenet.pooled import pooling_of
from losa_cache.train.cached import CachedSource
from losa_cache.train.residency import Residency

PLACES = ("device", "memory", "disk", "partial", "cold disk")
DIFFERENT = 16  # samples that differ
PRECISION = "bfloat16"


def make(name: str, folder: Path, images: int, device: torch.device) -> Figures:
    """Write the cache, as ``<name>.zarr``."""
    inputs = open_inputs(random_backbone(name, device), noise_images(images), precision=PRECISION, device=device)
    backbone = inputs.backbone
    encoding = get_precision(PRECISION).fit([], tokens=backbone.tokens, prefix=backbone.prefix_tokens)
    manifest = replace(inputs.manifest, encoding=encoding.describe() | {"compressed": None})
    layout = plan_store(inputs, encoding)
    values = torch.randn(DIFFERENT, *manifest.shape, device=device).bfloat16().cpu()
    packed = [pack(sample.view(torch.uint8).numpy(), layout) for sample in values]
    started = perf_counter()
    with (
        lock_cache(folder / f"{name}.zarr") as lock,
        CacheWriter.create(
            lock,
            manifest,
            layout,
            encoding,
            labels=inputs.samples.labels,
            ids=list(inputs.samples.ids),
            tail=dict(backbone.tail.state_dict()),
        ) as writer,
    ):
        for row in range(images):
            writer.append(row, packed[row % DIFFERENT])
        writer.finish()
    seconds = perf_counter() - started
    gigabytes = layout.total_bytes / 1e9
    return {"images": images, "gigabytes": gigabytes, "seconds": seconds, "gb_per_second": gigabytes / seconds}


def epoch(name: str, folder: Path, where: str) -> Figures:
    """Time how long a place takes to be filled, and epochs from it (of a cold disk the first one)."""
    path = folder / f"{name}.zarr"
    size = open_cache(path).layout.total_bytes
    before, started = device_bytes(), perf_counter()
    asked = {"cold disk": "disk"}.get(where, where)
    source = half_on_the_device(path) if where == "partial" else cached_source(name, folder, asked)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    loaded, on_device = perf_counter() - started, device_bytes() - before
    if where == "cold disk":
        drop_pages(path)
    figures = epochs(name, folder, source, warm=0, count=1) if where == "cold disk" else None
    figures = figures or epochs(name, folder, source, warm=None, count=2)
    loading = {"load_seconds": loaded, "load_gb_per_second": size / 1e9 / loaded}
    return loading | {"gigabytes": size / 1e9, "on_device_gb": on_device / 1e9} | figures


def device_bytes() -> int:
    """Count the bytes of all tensors on the GPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def half_on_the_device(path: Path) -> CachedSource:
    """Open a cache as a run does whose device has room for half of it, without taking the rest from others."""
    cache, half = open_cache(path), Residency("split", share=0.5)
    pooling = pooling_of(cache.manifest.tail)
    return CachedSource(cache, cache.manifest.points, choose_device(), residency=half, pooling=pooling)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_h")
    parser.add_argument("--images", type=int, default=768)
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(dir=".") as work:
        os.environ["LOSA_CACHE_HOME"] = str(Path(work) / "home")
        name, folder = arguments.backbone, Path(work)
        print("made", json.dumps(make(name, folder, arguments.images, choose_device())))
        for where in PLACES:
            print(where, json.dumps(epoch(name, folder, where)), flush=True)


if __name__ == "__main__":
    main()

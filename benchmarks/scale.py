"""What many small rows cost: to open a cache, hold out, take the first step, inspect, and read many shards.

    python benchmarks/scale.py [FOLDER] [--rows 1000000] [--rounds 3]

The rows are 64 bytes (two layers of two tokens and eight channels, bfloat16) and their checksum, so that nothing but
the number of rows counts. They lie in one shard, and once more in many (``--shards 2000``); FOLDER holds 150 MB a
million rows until the end. Every figure is the least of its rounds, each in a process of its own: seconds by the clock
(``seconds``) and of the processor (``cpu``, which other work on the machine changes less), with the peak memory.
``open`` is ``open_cache``; ``first step`` begins before it and ends when the first step of training does, streamed
from disk or once all rows are kept in memory (``--residency``).

``epochs`` counts what two epochs of random batches open, and what they read beside the rows, with as many descriptors
as ``ulimit -n`` leaves (``--descriptors 64``).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from peak import peak_gigabytes
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer

from losa_cache import open_cache
from losa_cache.backbone import Backbone
from losa_cache.cache.inspect import inspect_cache
from losa_cache.cache.precision import get_precision
from losa_cache.cache.shard import pack
from losa_cache.cache.writer import CacheWriter, lock_cache
from losa_cache.data.samples import Samples, hash_lines
from losa_cache.data.transforms import InputSpec
from losa_cache.extract.create_cache import plan_store
from losa_cache.inputs import open_inputs
from losa_cache.machine.device import machine

Figures = dict[str, Any]
CPU = torch.device("cpu")
CLASSES = 1000
DIFFERENT = 4096  # rows that differ


def tiny_backbone() -> Backbone:
    """Make a ViT of two blocks, two tokens and eight channels."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=4, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=0)
    model.pretrained_cfg = {"input_size": (3, 4, 4), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    spec = InputSpec.from_timm(resolve_model_data_config(model))
    return Backbone(model, name="tiny", random=True, input=spec)


def noise(rows: int) -> Samples:
    """Name so many samples, of which nobody asks for the images."""
    folders = [f"n{number:08d}" for number in range(CLASSES)]
    ids = [f"{folders[number % CLASSES]}/{folders[number % CLASSES]}_{number}.JPEG" for number in range(rows)]
    labels = np.arange(rows, dtype=np.int64) % CLASSES
    names = tuple(f"class {number}" for number in range(CLASSES))
    return Samples("noise", "train", names, ids, labels, lambda i: None, hash_lines(ids))  # type: ignore[arg-type, return-value]


def make(path: Path, rows: int, shards: int) -> None:
    """Write a cache of so many rows in about so many shards, as an extraction writes it."""
    inputs = open_inputs(tiny_backbone(), noise(rows), precision="bfloat16", device=CPU)
    encoding = get_precision("bfloat16").fit([], tokens=2, prefix=1)
    manifest = replace(inputs.manifest, encoding=encoding.describe() | {"compressed": None})
    layout = plan_store(inputs, encoding, shard_bytes=68 * -(-rows // shards))
    values = torch.randn(DIFFERENT, *manifest.shape).bfloat16()
    packed = [pack(value.view(torch.uint8).numpy(), layout) for value in values]
    with (
        lock_cache(path) as lock,
        CacheWriter.create(
            lock,
            manifest,
            layout,
            encoding,
            labels=inputs.samples.labels,
            ids=list(inputs.samples.ids),
            tail=dict(inputs.backbone.tail.state_dict()),
        ) as writer,
    ):
        for row in range(rows):
            writer.append(row, packed[row % DIFFERENT])
        writer.finish()


def opened(path: Path) -> Figures:
    started = perf_counter()
    open_cache(path)
    return {"seconds": perf_counter() - started}


def held_out(path: Path) -> Figures:
    from losa_cache.train.sampler import hold_out

    cache = open_cache(path)
    samples, ids = cache.samples, cache.sample_ids
    started, begun = perf_counter(), process_time()
    hold_out(samples, ids, 0.1)
    return {"seconds": perf_counter() - started, "cpu": process_time() - begun}


class FirstStepError(Exception):
    """It is done."""


def first_step(path: Path, residency: str) -> Figures:
    from losa_cache.train.train import train

    def stop(epochs: float) -> None:
        raise FirstStepError

    with tempfile.TemporaryDirectory() as work:
        started = perf_counter()
        try:
            train(
                path, out=Path(work) / "run", residency=residency, device="cpu", rank=2, batch_size=256, progress=stop
            )
        except FirstStepError:
            return {"seconds": perf_counter() - started}
    raise AssertionError("no step")


def inspected(path: Path) -> Figures:
    started = perf_counter()
    inspect_cache(path)
    return {"seconds": perf_counter() - started}


def epochs(path: Path, *, count: int = 2, batch: int = 256) -> Figures:
    """Read epochs of random batches, and count the system's opens and the bytes read beside the rows'."""
    from losa_cache.cache.byte_source import FileBytes
    from losa_cache.cache.reader import BlockReader
    from losa_cache.machine.memory import allocate

    cache = open_cache(path)
    counts = {"opens": 0, "bytes": 0}

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and "/c." in str(arguments[0]):
            counts["opens"] += 1

    original = FileBytes.read

    def read(self: FileBytes, ranges: Any) -> None:
        counts["bytes"] += sum(length for _, length, _ in ranges)
        original(self, ranges)

    sys.addaudithook(audit)
    FileBytes.read = read  # type: ignore[method-assign]
    layout = cache.layout
    reader = BlockReader(cache, cache.manifest.points)
    shape = (layout.layers, batch, layout.tokens, layout.columns)
    targets = list(allocate(shape, cache.precision.stored_dtype, CPU))
    found: Figures = {"seconds": []}
    for epoch in range(count):
        order = np.random.default_rng(epoch).permutation(cache.samples)[:100_000]
        started = perf_counter()
        for at in range(0, len(order), batch):
            reader.read(order[at : at + batch], targets)
        found["seconds"].append(round(perf_counter() - started, 2))
        found |= {f"{name} in epoch {epoch + 1}": value for name, value in counts.items()}
        counts.update(dict.fromkeys(counts, 0))
    reader.close()
    return found


PARTS: dict[str, Callable[[Path], Figures]] = {
    "open": opened,
    "hold out": held_out,
    "first step, streamed": lambda path: first_step(path, "disk"),
    "first step, kept": lambda path: first_step(path, "memory"),
    "inspect": inspected,
    "epochs": epochs,
}


def measure(part: str, path: Path, descriptors: int | None) -> Figures:
    """Run one part in a process of its own."""

    def limit() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    command = [sys.executable, __file__, "--one", part, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:]}
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def least(rounds: list[Figures]) -> Figures:
    """Take the round of the least processor time; of both times the least."""
    best = min(rounds, key=lambda figures: figures.get("cpu", 0))
    return best | {name: min(r[name] for r in rounds) for name in ("seconds", "cpu") if all(name in r for r in rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--descriptors", type=int, default=64)
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        started = process_time()
        figures = PARTS[arguments.one](arguments.folder)
        figures = {"cpu": process_time() - started} | figures
        figures = {name: round(value, 2) if isinstance(value, float) else value for name, value in figures.items()}
        print(json.dumps(figures | {"peak_gb": round(peak_gigabytes(), 2)}))
        return
    print(machine())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
        os.environ["LOSA_CACHE_HOME"] = str(Path(work) / "home")
        for name, shards in (("one shard", 1), (f"{arguments.shards} shards", arguments.shards)):
            path = Path(work).resolve() / f"{shards}.zarr"
            make(path, arguments.rows, shards)
            for part in arguments.part or PARTS:
                descriptors = arguments.descriptors if part == "epochs" else None
                rounds = [measure(part, path, descriptors) for _ in range(arguments.rounds)]
                print(json.dumps({"cache": name, "part": part, **least(rounds)}), flush=True)


if __name__ == "__main__":
    main()

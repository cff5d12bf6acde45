"""``predict`` over a folder of JPEGs beside the extraction of the same folder, without writing a cache.

    python benchmarks/predict_folder.py [--backbone vit_b] [--images 192] [--adapters 1] [--rounds 5]

Both decode the same files with the same threads and run the same backbone in the same batches. The extraction encodes
all block outputs to bfloat16 on the host and drops them; ``predict`` computes the adapters and writes a CSV. Weights
are random: the speed does not depend on them. Rounds are timed in turn; ratios are medians of the rounds' own. That of
the CPU time is the steadier one where other work runs beside it.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
from adapters import made_up
from made_up import random_backbone
from PIL import Image
from timing import Seconds, Work, synchronize

import losa_cache as lc
from losa_cache.backbone import Backbone
from losa_cache.calibrate import fit_encoding
from losa_cache.extract.forward import choose_forward
from losa_cache.extract.meter import Meter
from losa_cache.inputs import Inputs, open_inputs
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device, default_workers, machine
from losa_cache.train.trained_adapter import TrainedAdapter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_b")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--adapters", type=int, default=1)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    device = choose_device()
    backbone = random_backbone(arguments.backbone, device)
    made = partial(made_up, backbone, rank=arguments.rank, head="all", precision="bfloat16")
    adapters = {f"a{seed}": _with_clips(made(seed)).to(device) for seed in range(arguments.adapters)}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "photos")
        write_photos(root, arguments.images)
        inputs = open_inputs(backbone, "folder", data_dir=str(root), precision="bfloat16", device=device)
        options = (root, arguments.batch, Path(folder, "x.csv"))
        ways: dict[str, Work] = {
            "extract, not written": partial(extract_only, inputs, arguments.batch),
            "predict": partial(predict, backbone, adapters, *options),
        }
        times, spent = timed(ways, arguments.rounds)
    print(f"{machine()}; {arguments.backbone}, {arguments.images} images, {arguments.adapters} adapter(s)")
    for name, seconds in times.items():
        print(f"{name:22}{arguments.images / median(seconds):8.1f} images/s")
    for name, (extracted, predicted) in {"images/s": times.values(), "CPU time": spent.values()}.items():
        ratios = [ours / theirs for ours, theirs in zip(extracted, predicted, strict=True)]
        print(f"predict / extract, {name}: {median(ratios):.3f} ({', '.join(f'{ratio:.3f}' for ratio in ratios)})")


def timed(ways: dict[str, Work], rounds: int) -> tuple[Seconds, Seconds]:
    """Time each way in turn, once without counting: seconds, and seconds of CPU time, by way."""
    times: Seconds = {name: [] for name in ways}
    spent: Seconds = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, work in ways.items():
            began, begun = perf_counter(), process_time()
            work()
            synchronize()
            if turn:
                times[name].append(perf_counter() - began)
                spent[name].append(process_time() - begun)
    return times, spent


def write_photos(root: Path, count: int) -> None:
    """Write JPEGs of 500 x 375 pixels in two class folders."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = root / str(number % 2) / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(levels).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


def extract_only(inputs: Inputs, batch: int) -> None:
    """Decode, forward and encode as an extraction does, and drop what comes of it."""
    workers, count = default_workers(), len(inputs.samples)
    encoding = fit_encoding(inputs, workers=workers).to(inputs.backbone.device)
    plan = [range(at, min(at + batch, count)) for at in range(0, count, batch)]
    options = {"compute": inputs.compute, "batch_size": batch, "full_batches": len(plan), "meter": Meter()}
    forward = choose_forward(inputs.backbone, inputs.manifest.points, encoding, **options)  # type: ignore[arg-type]
    decoder = inputs.decoder(workers)
    for decoded in decoder.batches([[(row, None) for row in rows] for rows in plan]):
        for fetch in forward.run([decoded.pixels]):
            fetch()
    decoder.close()


def predict(backbone: Backbone, adapters: dict[str, TrainedAdapter], root: Path, batch: int, out: Path) -> None:
    """Predict the folder to a new file."""
    out.unlink(missing_ok=True)
    lc.predict(adapters, root, backbone=backbone, batch_size=batch, out=str(out))


def _with_clips(adapter: TrainedAdapter) -> TrainedAdapter:
    """Say what else of its cache's fields is read."""
    adapter.config["cache"]["fields"] |= {"views": {"count": 1, "augment": None, "clips": 1}, "orientation": "upright"}
    return adapter


if __name__ == "__main__":
    main()

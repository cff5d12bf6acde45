"""The figures of ``gpu.py``, part by part: this process measures, and ``gpu.py`` watches over it.

A part yields its measurements, the most valuable first, each a description and what takes it; so time is looked at
between any two of them. A measurement that raises is a line with its error, and so is one that runs out of memory.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import peers
import residency
import torch
import training_steps
import video
from gpu import SHARES
from made_up import noise_images, random_backbone
from peak import peak_gigabytes
from predict import streams
from side import TINY
from stages import limits
from timing import describe, free_memory, seconds

from losa_cache.cache.precision import get_precision
from losa_cache.extract.extract import extract
from losa_cache.extract.limiter import limiter
from losa_cache.extract.measure import device_speed
from losa_cache.extract.meter import Meter
from losa_cache.inputs_config import ImageConfig
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device
from losa_cache.machine.sizes import parse_bytes
from losa_cache.pareto.config import CLASSES, ParetoConfig
from losa_cache.pareto.entries import all_entries
from losa_cache.pareto.shapes import measure
from losa_cache.points import ALL_LAYERS, tapped_points

ROOT = Path(__file__).parents[1]
OUTPUT = 20_000  # characters of a failed test run
PAPER_BYTES = 16e9  # the memory of the paper's V100
FIRST = ("losa:online", "lora", "losa", "full", "bitfit", "adaptformer", "vpt:deep", "last:2", "linear")
"""Methods that are measured in every backbone before the others are in any."""
Figures = dict[str, Any]
Measurements = Generator[tuple[Figures, Callable[[], Figures]], None, None]
"""What is measured, each time, and what measures it."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        shapes, ranks, batches: of one trial's step.
        compiled: the shape that ``torch.compile`` is tried at.
        trials: how many train together, at the first shape.
        backbones, pixels, images: that are extracted from: names, images a batch, and images a whole extraction.
        kept, kept_images: whose cache is kept in several places, and how many images it has.
        lora: backbones that LoRA trains inside.
        compared, methods: backbones, and the methods that are measured in each.
        videos, frames: of the paper's Table 2.
        streamed, budget, streamed_images: a backbone larger than the memory it is given.
        repeats: of every measurement.
        stream_bytes, square: of the tensor that is copied and read, and of the matrices that are multiplied.
        disk_bytes: of the file that tells the disk's limit.
    """

    shapes: tuple[str, ...] = ("vit_b", "vit_l", "vit_h", "vit_g")
    ranks: tuple[int, ...] = (16, 4, 64)
    batches: tuple[int, ...] = (256, 64)
    compiled: str = "vit_b"
    trials: tuple[int, ...] = (16, 4, 64, 1)
    backbones: tuple[str, ...] = ("vit_b", "vit_l", "vit_h")
    pixels: int = 64
    images: int = 2048
    kept: str = "vit_h"
    kept_images: int = 768
    lora: tuple[str, ...] = ("vit_b", "vit_h")
    compared: tuple[str, ...] = ("vit_b", "vit_h", "vit_g", "vit_l")
    methods: tuple[str, ...] = FIRST + tuple(entry for entry in all_entries(video=False) if entry not in FIRST)
    videos: tuple[str, ...] = ("vivit_b", "vivit_h", "vivit_g", "vivit_G", "vivit_e")
    frames: int = 32
    streamed: str = "vit_e"
    budget: str = "4GB"
    streamed_images: int = 512
    repeats: int = 5
    stream_bytes: int = 4 * 10**9
    square: int = 8192
    disk_bytes: int = 2**29


SMALL = Sizes(
    shapes=(TINY,),
    ranks=(4,),
    batches=(4,),
    compiled="",
    trials=(2,),
    backbones=(TINY,),
    pixels=4,
    images=16,
    kept=TINY,
    kept_images=32,
    lora=(TINY,),
    compared=(TINY,),
    methods=("losa", "losa:online", "bitfit"),
    videos=(video.TINY,),
    frames=4,
    streamed=TINY,
    budget="2MB",
    streamed_images=8,
    repeats=1,
    stream_bytes=10**6,
    square=64,
    disk_bytes=2**20,
)


def card(sizes: Sizes, until: float) -> Measurements:
    """Name the hardware and the software, and measure the limits of its memory and of its matrix products."""
    yield {}, partial(_card, sizes)


def _card(sizes: Sizes) -> Figures:
    device = choose_device()
    found: Figures = {"card": "CPU", "torch": torch.__version__, "python": sys.version.split()[0]}
    found |= {"triton": _triton(), "cores": os.cpu_count(), "driver": None}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"card": properties.name, "gigabytes": properties.total_memory / 1e9, "cuda": torch.version.cuda}
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        found["driver"] = answer.stdout.strip()
    values = torch.randn(sizes.stream_bytes // 2, device=device).bfloat16()
    target = torch.empty_like(values)
    copied = _best(partial(target.copy_, values))
    left, right = (torch.randn(sizes.square, sizes.square, device=device).bfloat16() for _ in range(2))
    return found | {
        "copy_gb_s": 2 * values.nbytes / 1e9 / copied,
        "read_gb_s": read_bandwidth(values) / 1e9,
        "matmul_tflops": 2 * sizes.square**3 / 1e12 / _best(partial(torch.matmul, left, right)),
    }


def read_bandwidth(values: torch.Tensor) -> float:
    """Measure how many bytes a second a sum over a large tensor reads."""
    return values.nbytes / min(_best(values.sum), _best(values.view(torch.float32).sum))


def _best(work: Callable[[], object]) -> float:
    work()
    return min(seconds(work, calls=3) for _ in range(3))


def _triton() -> str | None:
    if find_spec("triton") is None:
        return None
    import triton

    return str(triton.__version__)


def tests(sizes: Sizes, until: float) -> Measurements:
    """Run the tests marked ``cuda`` in a process of their own."""
    yield {}, partial(_tests, until)


def _tests(until: float) -> Figures:
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "tests/cuda", "-q", "--maxfail=20", "--tb=short"]
    command += ["-p", "no:xdist", "-p", "no:cacheprovider", "--durations=5"]
    cut = False
    with tempfile.TemporaryFile("w+") as said:
        running = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            running.wait(max(1.0, until - time.time()))
        except subprocess.TimeoutExpired:
            cut = True
            running.send_signal(signal.SIGINT)  # pytest then says what it found so far
            try:
                running.wait(15)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
        said.seek(0)
        output = said.read()
    lines = output.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    figures: Figures = {"summary": lines[-1] if lines else "", "cut": cut, "failed": failed}
    if failed or cut or running.returncode not in (0, 5):
        figures["output"] = output[-OUTPUT:]
    return figures


def step(sizes: Sizes, until: float) -> Measurements:
    """Measure a training step of one trial beside the time to read the block outputs twice."""
    device = choose_device()
    bandwidth = read_bandwidth(torch.randn(sizes.stream_bytes // 2, device=device).bfloat16())
    free_memory()
    settings: list[dict[str, Any]] = [{"batch": batch, "rank": rank} for batch in sizes.batches for rank in sizes.ranks]
    default = settings[0] | {"head": ALL_LAYERS}  # the recipe that a run has, from memory and from elsewhere
    settings[1:1] = [default | {"normed": True}, default]
    for setting in settings:
        for shape in sizes.shapes:
            case = training_steps.Case(shape=shape, device=device, repeats=sizes.repeats, **setting)
            yield case.said, partial(training_steps.one_trial, case, bandwidth=bandwidth)
    if sizes.compiled:
        case = training_steps.Case(sizes.compiled, sizes.ranks[0], sizes.batches[-1], device, sizes.repeats)
        yield case.said | {"compiled": True}, partial(training_steps.compiled_plain, case)


def stacks(sizes: Sizes, until: float) -> Measurements:
    """Measure a step of many trials beside one of one."""
    for rank in sizes.ranks[:2]:
        case = training_steps.Case(sizes.shapes[0], rank, sizes.batches[0], choose_device(), sizes.repeats)
        for count in sizes.trials:
            yield case.said | {"trials": count}, partial(training_steps.many_trials, case, count)


def extraction(sizes: Sizes, until: float) -> Measurements:
    """Measure the forward pass bare and with every block output encoded; then whole extractions to a disk."""
    for precision in ("bfloat16", "predict:1", "int8"):
        for name in sizes.backbones:
            yield {"backbone": name, "precision": precision}, partial(_device_speed, name, precision, sizes)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        yield {"limits": "host"}, partial(limits, folder, sizes.disk_bytes)
        for precision in ("bfloat16", "predict:1"):
            says = {"backbone": sizes.backbones[0], "precision": precision, "to": "disk"}
            yield says, partial(_to_disk, sizes.backbones[0], precision, folder, sizes)


def _device_speed(name: str, precision: str, sizes: Sizes) -> Figures:
    device = choose_device()
    if device.type != "cuda":
        return {"left_out": "it needs a CUDA device"}
    backbone = random_backbone(name, device)
    shape = (32, backbone.tokens, backbone.width)
    blocks = streams(backbone.depth, shape, device) if precision.startswith("predict") else []
    if precision == "int8":
        blocks = [torch.randn(shape, device=device)] * backbone.depth
    encoding = get_precision(precision).fit(blocks, tokens=backbone.tokens, prefix=backbone.prefix_tokens)
    del blocks
    pixels = torch.randint(0, 256, (sizes.pixels, *backbone.input.shape), dtype=torch.uint8).pin_memory()
    points, compute = tapped_points("block", range(1, backbone.depth + 1)), backbone.compute_dtype(precision)
    speed = device_speed(backbone, points, encoding, pixels, compute=compute)
    ratio = speed.extraction / speed.forward
    return {"forward": speed.forward, "extraction": speed.extraction, "ratio": ratio, "way": speed.way}


def _to_disk(name: str, precision: str, folder: Path, sizes: Sizes) -> Figures:
    meter, out = Meter(), folder / f"{precision.replace(':', '-')}.zarr"
    backbone, batch = random_backbone(name, choose_device()), sizes.pixels
    extract(backbone, noise_images(sizes.images), precision=precision, out=out, batch_size=batch, meter=meter)
    return _told(meter)


def _told(meter: Meter) -> Figures:
    waited = {"waited_decode_s": meter.waited_decode, "waited_write_s": meter.waited_write}
    rates = {"images_per_second": meter.images / meter.seconds, "gb_s": meter.bytes / 1e9 / meter.seconds}
    device = {"forward_s": meter.forward, "encode_s": meter.encode, "copy_s": meter.copy, "write_s": meter.write}
    return rates | waited | device | {"seconds": meter.seconds, "limiter": limiter(meter)}


def epochs(sizes: Sizes, until: float) -> Measurements:
    """Measure epochs from a cache that lies in the device's memory, the host's, both, or on the disk; and online."""
    name = sizes.kept
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        made = partial(residency.make, name, folder, sizes.kept_images, choose_device())
        yield {"backbone": name, "where": "made"}, made
        for where in ("device", "memory", "disk", "partial", "cold disk"):
            yield {"backbone": name, "where": where}, partial(_epoch, name, folder, where)
    yield {"backbone": name, "where": "online"}, partial(_peer, "LoSA, all layers", name, sizes)


def _epoch(name: str, folder: Path, where: str) -> Figures:
    if where in ("device", "partial") and not torch.cuda.is_available():
        return {"left_out": "it needs a CUDA device"}
    return residency.epoch(name, folder, where)


def lora(sizes: Sizes, until: float) -> Measurements:
    """Measure LoSA, cached and online, beside LoRA and the bare forward pass."""
    for name in sizes.lora:
        for method in ("LoRA", "LoSA, all layers", "LoSA, cached", "bare forward"):
            yield {"backbone": name, "method": method, "batch": sizes.pixels}, partial(_peer, method, name, sizes)


def _peer(method: str, name: str, sizes: Sizes) -> Figures:
    if method == "LoRA" and find_spec("peft") is None:
        return {"left_out": "the package peft is not installed"}
    found = peers.measure(method, name, sizes.pixels, sizes.repeats)
    return {"images_per_second": sizes.pixels / found.pop("seconds"), **found}


def methods(sizes: Sizes, until: float) -> Measurements:
    """Measure what the methods of a comparison cost, without accuracy."""
    first = [entry for entry in sizes.methods if entry in FIRST]
    others = [entry for entry in sizes.methods if entry not in FIRST]
    for name, entry in (*product(sizes.compared, first), *product(sizes.compared, others)):
        yield {"backbone": name, "method": entry, "batch": sizes.pixels}, partial(_cost, entry, name, sizes)


def _cost(entry: str, name: str, sizes: Sizes) -> Figures:
    free_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    own = {"entry": entry, "batch_size": sizes.pixels, "device": None, "classes": CLASSES}
    return measure(asdict(ImageConfig(name, "noise")) | asdict(ParetoConfig()) | own)


def videos(sizes: Sizes, until: float) -> Measurements:
    """Measure the paper's Table 2, each method in 16 GB of memory, and in all there is where those are too little."""
    for method in ("LoSA, cached", "LoSA, online", "LoRA", "linear probe, online"):
        for name in sizes.videos:
            yield {"backbone": name, "method": method, "frames": sizes.frames}, partial(_clip, method, name, sizes)


def _clip(method: str, name: str, sizes: Sizes) -> Figures:
    if method == "LoRA" and find_spec("peft") is None:
        return {"left_out": "the package peft is not installed"}
    take = partial(video.measure, method, name, 1, sizes.frames, sizes.repeats)
    if not torch.cuda.is_available():
        return take()
    try:
        with at_most(PAPER_BYTES):
            return {"fits_16_gb": True, **take()}
    except torch.OutOfMemoryError:
        pass
    free_memory()
    return {"fits_16_gb": False, **take()}


@contextmanager
def at_most(size: float) -> Iterator[None]:
    """Let tensors take only so many bytes of the GPU."""
    free_memory()
    torch.cuda.set_per_process_memory_fraction(min(1.0, size / torch.cuda.get_device_properties(0).total_memory))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def budget(sizes: Sizes, until: float) -> Measurements:
    """Extract four layers of a backbone that is larger than the memory it is given."""
    says = {"backbone": sizes.streamed, "budget": sizes.budget, "images": sizes.streamed_images}
    yield says, partial(_streamed, sizes)


def _streamed(sizes: Sizes) -> Figures:
    device, meter = choose_device(), Meter()
    backbone = random_backbone(sizes.streamed, device)
    weights = backbone.weight_bytes
    backbone.to(device, budget=parse_bytes(sizes.budget))
    free_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "cache.zarr"
        extract(backbone, noise_images(sizes.streamed_images), layers=4, out=out, meter=meter)
    figures = _told(meter) | {"weights_gb": weights / 1e9, "host_peak_gb": peak_gigabytes()}
    if device.type == "cuda":
        figures["device_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        figures["device_reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
    return figures


PARTS: dict[str, Callable[[Sizes, float], Measurements]] = {
    "card": card,
    "tests": tests,
    "step": step,
    "stacks": stacks,
    "extraction": extraction,
    "residency": epochs,
    "lora": lora,
    "methods": methods,
    "video": videos,
    "budget": budget,
}


def take(part: str, sizes: Sizes, until: float) -> Iterator[Figures]:
    """Take a part's measurements until its time is over."""
    measurements = PARTS[part](sizes, until)
    while True:
        started = time.time()
        says: Figures = {"part": part}
        try:
            own, measure = next(measurements)
            says |= own
            if started > until:
                measurements.close()
                yield says | {"cut": "no time was left for this and what follows"}
                return
            yield says | measure() | {"took_s": time.time() - started}
        except StopIteration:
            return
        except torch.OutOfMemoryError:
            yield says | {"out_of_memory": True, "took_s": time.time() - started}
        except Exception as error:  # whatever it is, the next one may work
            yield says | {"error": describe(error), "traceback": traceback.format_exc().splitlines()[-12:]}
        free_memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, required=True)
    parser.add_argument("--end", type=float, required=True, help="when all must have ended, by time.time()")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    parts: list[str] = arguments.parts
    for number, part in enumerate(parts):
        now = time.time()
        allotted = max(0.0, arguments.end - now) * SHARES[part] / sum(SHARES[other] for other in parts[number:])
        print(json.dumps({"part": part, "allotted_s": round(allotted, 1)}), flush=True)
        for line in take(part, SMALL if arguments.tiny else Sizes(), now + allotted):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

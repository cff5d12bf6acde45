"""The forms of LoSA in exported files: as the equations stand, or as sums of low rank.

    python benchmarks/export.py [--shape 384x16] [--batch 8] [--repeats 7] [--head last] [--backbone vit_s]

Random weights, 197 tokens, 12 layers. Prints the milliseconds an image in ONNX Runtime and
of the .pt2 file, of the side network alone and, with --backbone, of both together: medians, all in turn.
"""

import argparse
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime
import torch

from losa_cache.apply.export import forms, onnx_file, torch_file
from losa_cache.apply.export.export import trace
from losa_cache.apply.export.graph import Exportable, SideOnly, WithBackbone
from losa_cache.backbone import load_backbone
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.tail import FrozenTail
from losa_cache.train.trained_adapter import TrainedAdapter

TOKENS, LAYERS = 197, 12
NORM = {"type": "layernorm", "eps": 1e-6, "affine": False, "bias": False}
TAIL = {"prefix_tokens": 1, "pool": "token", "class_tokens": 1, "pool_prefix": False}
Work = Callable[[], object]


def adapter(width: int, rank: int, head: str) -> TrainedAdapter:
    """Make a LoSA of random weights."""
    tail = FrozenTail({"width": width, **TAIL, "norm": NORM, "fc_norm": {"type": "identity"}})
    sizes = {"depth": LAYERS, "tokens": TOKENS, "width": width, "rank": rank, "classes": 100, "points": LAYERS}
    own = Adapter(side="losa", head=head, tail=tail, **sizes).eval()  # type: ignore[arg-type]
    for parameter in own.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    config = {"adapter": {"width": width}}
    return TrainedAdapter(own, [f"block.{number}" for number in range(1, LAYERS + 1)], config)


def ways(make: Callable[[], Exportable], batch: int, folder: Path) -> dict[str, Work]:
    """Export in both forms and both formats, and give what runs each of them."""
    found: dict[str, Work] = {}
    for form, columns in (("plain", 0), ("sums", 10**9)):
        forms.MOST_COLUMNS = columns
        exported = make()
        inputs = exported.noise(batch, seed=0)
        for name, file, suffix in (("ONNX Runtime", onnx_file, "onnx"), (".pt2", torch_file, "pt2")):
            path = folder / f"{form}.{suffix}"
            file.write(trace(exported), exported, path, {"output": "logits"})
            if file is onnx_file:
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = torch.get_num_threads()
                session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
                feed = dict(zip(exported.names, map(np.asarray, inputs), strict=True))
                found[f"{name}, {form}"] = lambda session=session, feed=feed: session.run(None, feed)  # type: ignore[misc]
            else:
                model = torch.export.load(path).module()
                found[f"{name}, {form}"] = lambda model=model, inputs=inputs: model(*inputs)  # type: ignore[misc]
    return found


def measure(label: str, make: Callable[[], Exportable], batch: int, repeats: int) -> None:
    """Print the medians of all ways, which run in turn."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.no_grad():
        works = ways(make, batch, Path(folder))
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(repeats + 1):
            for name, work in works.items():
                started = perf_counter()
                work()
                times[name].append(perf_counter() - started)
    told = ", ".join(f"{name} {1e3 * statistics.median(own[1:]) / batch:.2f}" for name, own in times.items())
    print(f"{label}, {torch.get_num_threads()} threads, ms an image: {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help="width x rank of the side network; several are allowed")
    parser.add_argument(
        "--backbone",
        action="append",
        default=[],
        help="Add a whole model of this backbone, which must have 12 blocks and 197 tokens.",
    )
    parser.add_argument("--head", default="all", help="what the classifier reads: all or last")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    logging.disable()
    warnings.simplefilter("ignore")
    for shape in given.shape or ["384x16", "768x16", "768x64"]:
        width, rank = map(int, shape.split("x"))
        measure(f"side network {shape}", lambda: SideOnly(adapter(width, rank, given.head)), given.batch, given.repeats)  # noqa: B023
    for name in given.backbone:
        trunk = load_backbone(name, weights="random")
        own = adapter(trunk.width, 16, given.head)
        measure(f"{name} and rank 16", lambda: WithBackbone(own, trunk), given.batch, given.repeats)  # noqa: B023


if __name__ == "__main__":
    main()

"""What predicted layers cost in time, and how much there is to predict.

    python benchmarks/predict.py [--backbone vit_b] [--bits 1] [--rank 16] [--images 64] [--repeats 5]
    python benchmarks/predict.py --backbone vit_digits --weights pretrained --dataset digits
    python benchmarks/predict.py --backbone NAME --weights FILE --img-size 224 --dataset folder --data-dir DIR

Without a data set: images of noise through random weights, encoded as a made-up stream needs it. Milliseconds an image,
medians in turn: the bare forward pass, and with its block outputs encoded; a training step of LoSA on values in memory,
on codes decoded first, and on codes as they are. With one: of every block, the share of its variance (standard values)
that is left by prediction from the whole block before, exact, of images that it was not fitted to.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from made_up import random_backbone
from peers import descend
from stack import TAIL
from timing import Work, in_turn, medians
from torch import Tensor

import losa_cache as lc
from losa_cache.cache.precision import EncodedBatch, get_precision
from losa_cache.cache.precision.predict_fit import RIDGE
from losa_cache.calibrate import calibrate
from losa_cache.factors import Product
from losa_cache.inputs import open_inputs
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device, default_workers, has_bfloat16, machine
from losa_cache.points import tapped_points
from losa_cache.sidenet.operand import Block

CLASSES, BATCH = 10, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_b")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--img-size", type=int)
    parser.add_argument("--dataset")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--bits", default="1")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    print(f"{arguments.backbone}, {machine()}")
    if arguments.dataset is None:
        speed(arguments)
    else:
        shares(arguments)


def shares(arguments: argparse.Namespace) -> None:
    """Print what prediction leaves of every block."""
    inputs = open_inputs(
        arguments.backbone,
        arguments.dataset,
        data_dir=arguments.data_dir,
        weights=arguments.weights,
        img_size=arguments.img_size,
        device=choose_device(),
    )
    sample = calibrate(inputs, workers=default_workers(), images=get_precision("predict:1").images)
    left = [
        _left(*(own[:, sample.prefix :].float() for own in pair))
        for pair in zip(sample.thin, sample.thin[1:], strict=False)
    ]
    print(f"  share of variance left of blocks 2 ... {len(left) + 1}:", " ".join(f"{share:.3f}" for share in left))


def _left(before: Tensor, block: Tensor) -> float:
    """Predict the second half of the images as the first half says."""
    half = len(block) // 2
    standard = [(own - own.mean((0, 1))) / own.std((0, 1)) for own in (before, block)]
    (known, wanted), (fresh, expected) = (
        [own[part].flatten(0, 1) for own in standard] for part in (slice(0, half), slice(half, None))
    )
    gram = known.mT @ known
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    rest = expected - fresh @ torch.linalg.solve(gram, known.mT @ wanted)
    return float(rest.square().mean() / expected.square().mean())


def streams(depth: int, shape: tuple[int, int, int], device: torch.device) -> list[Tensor]:
    """Make up block outputs that need as many axes as real ones: what a block adds has a fifth of the stream's variance
    and a spectrum like that of real residuals, falling as the power -0.8 of the axis.

    Random weights and noise would not do: what those make of one block is all but known from the one before.
    """
    width = shape[-1]
    spectrum = torch.arange(1, width + 1, device=device) ** -0.4
    spectrum /= spectrum.square().mean().sqrt()
    stream, found = torch.randn(shape, device=device), []
    for _ in range(depth):
        axes = torch.linalg.qr(torch.randn(width, width, device=device))[0]
        stream = (stream + 0.2**0.5 * (torch.randn(shape, device=device) * spectrum) @ axes) / 1.2**0.5
        found.append(stream)
    return found


def speed(arguments: argparse.Namespace) -> None:
    """Time encoding beside the forward pass, and training steps beside each other."""
    device, images = choose_device(), arguments.images
    backbone = random_backbone(arguments.backbone, device)
    points, compute = tapped_points("block", range(1, backbone.depth + 1)), backbone.compute_dtype("bfloat16")
    pixels = torch.randint(0, 256, (images, *backbone.input.shape), dtype=torch.uint8, device=device)
    parts = pixels.split(BATCH)
    blocks = streams(len(points), (images, backbone.tokens, backbone.width), device)
    sizes = {"tokens": backbone.tokens, "prefix": backbone.prefix_tokens}
    name = f"predict:{arguments.bits}"
    encodings = {n: get_precision(n).fit(blocks, **sizes).to(device) for n in ("bfloat16", "int8", "int4", name)}

    def forward(encoding: str | None) -> None:
        for part in parts:
            if encoding is None:
                backbone.run(part, points, lambda _, value: None, compute=compute)
                continue
            batch = EncodedBatch.empty(encodings[encoding], len(part), (len(points), *blocks[0].shape[1:]), device)
            backbone.run(part, points, batch.put, compute=compute)

    _report("forward pass", {"bare": partial(forward, None), **{n: partial(forward, n) for n in encodings}}, arguments)
    tail = lc.FrozenTail({"width": backbone.width, **TAIL, "pool": "avg", "prefix_tokens": backbone.prefix_tokens})
    adapter = lc.Adapter(
        side="losa", depth=len(points), tokens=backbone.tokens, width=backbone.width, rank=arguments.rank,
        classes=CLASSES, tail=tail,
    ).to(device)  # fmt: skip
    trained = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    labels = torch.zeros(images, dtype=torch.int64, device=device)
    encoding, values = encodings[name], [block.bfloat16() for block in blocks]
    planes = list(EncodedBatch.of(encoding, blocks).stored.unbind(1))

    def step(given: Callable[[], list[Block]]) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            logits = adapter(given())
        descend(logits, labels, optimizer)

    def folded() -> list[Block]:
        found = encoding.factors(planes, rank=1)
        assert found is not None
        products = [own for own in found if isinstance(own, Product)]
        return [*products[:-1], products[-1].dense()]

    roads: dict[str, Callable[[], list[Block]]] = {
        "values": lambda: [*values],
        "decoded": lambda: [*encoding.decode(planes)],
    }
    if encoding.factors(planes, rank=1) is not None:
        roads["folded"] = folded
    said = encoding.describe()
    chosen = "decoded" if encoding.factors(planes, rank=arguments.rank) is None else "folded"
    print(f"  {name}: {said['bits']} bits a value; at rank {arguments.rank} chosen by cost: {chosen}")
    _report(
        f"LoSA step, rank {arguments.rank}", {road: partial(step, given) for road, given in roads.items()}, arguments
    )


def _report(title: str, works: dict[str, Work], arguments: argparse.Namespace) -> None:
    taken = medians(in_turn(works, repeats=arguments.repeats))
    each = {name: 1e3 * seconds / arguments.images for name, seconds in taken.items()}
    first = next(iter(each.values()))
    print(f"  {title}:", ", ".join(f"{name} {ms:.2f} ms ({ms / first:.2f} x)" for name, ms in each.items()), flush=True)


if __name__ == "__main__":
    main()

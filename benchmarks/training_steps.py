"""A whole training step of stage two, in every way that it can be taken on a device, and its limit.

A step is the one that ``losa-cache train`` takes (``stack.py``), on block outputs that are in the device's memory.
The limit is the time to read all block outputs twice, on the way forth and on the way back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from side import SHAPES
from stack import CLASSES, adapters, alone, together
from timing import Seconds, Work, added_gigabytes, describe, free_memory, in_turn, medians, synchronize
from torch import Tensor, nn

from losa_cache import Adapter, LoSA
from losa_cache.machine.fastest import why_not_triton
from losa_cache.sidenet.backend import use_backend
from losa_cache.sidenet.operand import Block, Normed, dense
from losa_cache.sidenet.pooled import Pooling
from losa_cache.sidenet.readout import Readout
from losa_cache.train.graph import Recorder, recorder_for

EAGER, KERNELS, GRAPH, GRAPH_KERNELS = "eager", "kernels", "graph", "graph + kernels"
PLAIN, COMPILED = "plain", "plain compiled"
Figures = dict[str, Any]
Builder = Callable[[], Work]
Build = Callable[[Recorder | None], Work]


@dataclass(frozen=True)
class Case:
    """A training step to be measured.

    Attributes:
        shape: of ``SHAPES``.
        rank, batch: of the side network.
        device: to compute on.
        repeats: of each measurement.
        head: what the classifier reads, as of :class:`losa_cache.Adapter`.
        normed: whether block outputs are layer-normed once before all steps, as ``train`` does in memory.
    """

    shape: str
    rank: int
    batch: int
    device: torch.device
    repeats: int
    head: str = "last"
    normed: bool = False

    @property
    def said(self) -> Figures:
        """What identifies it."""
        said = {"shape": self.shape, "rank": self.rank, "batch": self.batch, "head": self.head}
        return said | ({"normed": "once"} if self.normed else {})

    def block_outputs(self) -> tuple[list[Block], Tensor]:
        """Make random bfloat16 block outputs, and labels."""
        depth, tokens, width, _ = SHAPES[self.shape]
        shape = (self.batch, tokens, width)
        values = [torch.randn(shape, dtype=torch.bfloat16, device=self.device) for _ in range(depth)]
        labels = torch.randint(0, CLASSES, (self.batch,), device=self.device)
        if not self.normed:
            return [*values], labels
        rows = Pooling(classes=1, prefix=1).norm_in_place(values)
        return [Normed(own, rows[:, number]) for number, own in enumerate(values)], labels

    def adapters(self, count: int) -> list[Adapter]:
        """Build adapters that differ in their seed."""
        return adapters(self.shape, self.rank, count, self.device, head=self.head)


class Plain(nn.Module):
    """The side network as the paper's equations stand, with autograd's own way back.

    Args:
        network: whose parameters it uses.
        compiled: by ``torch.compile``.
    """

    def __init__(self, network: LoSA, *, compiled: bool) -> None:
        super().__init__()
        self.network = network
        self._forward = torch.compile(network.plain) if compiled else network.plain

    def forward(self, blocks: Sequence[Block], readout: Readout) -> Tensor:
        """Read y_k as the tail wants it."""
        return readout.rows(self._forward(dense(blocks)))


def plain(adapter: Adapter, *, compiled: bool = False) -> Adapter:
    """Have an adapter compute its side network in the plain form."""
    assert isinstance(adapter.side, LoSA)
    adapter.side = Plain(adapter.side, compiled=compiled)
    return adapter


def by(backend: str, step: Work) -> Work:
    """Take a step with the side network on this backend."""

    def work() -> None:
        with use_backend(backend):
            step()

    return work


def ways(build: Build, device: torch.device) -> tuple[dict[str, Builder], dict[str, str]]:
    """Name the ways to take a step in the fast form, and why others cannot be.

    Args:
        build: gives the step, with parameters of its own.
        device: that it runs on.
    """
    found: dict[str, Builder] = {EAGER: lambda: by("torch", build(None))}
    left_out: dict[str, str] = {}
    if device.type == "cuda":
        found[GRAPH] = lambda: by("torch", build(recorder_for(device)))
    else:
        left_out[GRAPH] = "it needs a CUDA device"
    if (reason := why_not_triton(device)) is None:
        found[KERNELS] = lambda: by("triton", build(None))
        found[GRAPH_KERNELS] = lambda: by("triton", build(recorder_for(device)))
    else:
        left_out |= dict.fromkeys((KERNELS, GRAPH_KERNELS), reason)
    return found, left_out


def built(builders: dict[str, Builder], left_out: dict[str, str]) -> tuple[dict[str, Work], dict[str, float | None]]:
    """Build each way and call it until it is recorded; say what gigabytes that adds on a GPU, or what went wrong."""
    works: dict[str, Work] = {}
    added: dict[str, float | None] = {}

    def make(name: str) -> None:
        work = builders[name]()
        for _ in range(3):
            work()
        works[name] = work

    for name in builders:
        try:
            added[name] = added_gigabytes(partial(make, name))
        except Exception as error:  # a kernel that does not compile, a step that cannot be captured, no memory
            left_out[name] = describe(error)
            free_memory()
    return works, added


def one_trial(case: Case, *, bandwidth: float) -> Figures:
    """Measure every way of one trial's step but the compiled one, and count kernels and memory.

    Args:
        case: to measure.
        bandwidth: of the device's memory, bytes read a second.
    """
    blocks, labels = case.block_outputs()
    builders, left_out = ways(lambda recorder: alone(case.adapters(1)[0], blocks, labels, recorder), case.device)
    builders[PLAIN] = lambda: alone(plain(case.adapters(1)[0]), blocks, labels)
    works, added = built(builders, left_out)
    limit = 2 * sum(nbytes(block) for block in blocks) / bandwidth
    figures = summary(in_turn(works, repeats=case.repeats), left_out)
    figures["limit_ms"] = 1e3 * limit
    figures["over_limit"] = {name: ms / 1e3 / limit for name, ms in figures["ms"].items()}
    figures["added_gb"] = added
    figures["kernels"] = {name: launches(works[name]) for name in (EAGER, KERNELS) if name in works}
    return figures


def nbytes(block: Block) -> int:
    """Count the bytes of the tokens of a block output."""
    return block.kept.nbytes if isinstance(block, Normed) else dense([block])[0].nbytes


def compiled_plain(case: Case) -> Figures:
    """Measure the plain form by ``torch.compile``, beside itself."""
    torch.compiler.reset()
    blocks, labels = case.block_outputs()
    builders: dict[str, Builder] = {
        PLAIN: lambda: alone(plain(case.adapters(1)[0]), blocks, labels),
        COMPILED: lambda: alone(plain(case.adapters(1)[0], compiled=True), blocks, labels),
    }
    left_out: dict[str, str] = {}
    works, added = built(builders, left_out)
    return summary(in_turn(works, repeats=case.repeats), left_out) | {"added_gb": added}


def many_trials(case: Case, count: int) -> Figures:
    """Measure a step of so many trials together beside a step of one, in every way, in turn."""
    blocks, labels = case.block_outputs()
    one, left_out = ways(lambda recorder: alone(case.adapters(1)[0], blocks, labels, recorder), case.device)
    all_of_them, _ = ways(lambda recorder: together(case.adapters(count), blocks, labels, recorder), case.device)
    works, added = built({f"one, {name}": build for name, build in one.items()} | all_of_them, left_out)
    figures = summary(in_turn(works, repeats=case.repeats), left_out)
    ms = figures["ms"]
    alike = {name: (ms[name], ms[f"one, {name}"]) for name in one if {name, f"one, {name}"} <= ms.keys()}
    figures["over_one"] = {name: many / single for name, (many, single) in alike.items()}
    if alike:
        figures["fastest_over_fastest_one"] = min(m for m, _ in alike.values()) / min(s for _, s in alike.values())
    return figures | {"added_gb": {name: added[name] for name in all_of_them if name in added}}


def summary(found: Seconds, left_out: dict[str, str]) -> Figures:
    """Give medians in milliseconds, and what could not be measured."""
    return {"ms": {name: 1e3 * seconds for name, seconds in medians(found).items()}, "left_out": left_out}


def launches(step: Work) -> int | None:
    """Count the kernels, copies and fills of a step on a GPU; ``None`` without one."""
    if not torch.cuda.is_available():
        return None
    from torch.profiler import ProfilerActivity, profile

    synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        synchronize()
    return sum(event.device_type.name == "CUDA" for event in profiler.events())

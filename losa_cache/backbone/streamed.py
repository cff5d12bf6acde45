"""A trunk whose blocks pass through the device in groups, because they do not fit there at once.

Many batches go through one group before the next group comes, and that one is copied meanwhile; so weights are moved
once for all batches, and the residual streams of the batches wait on the host. What enters the first block, and what
else a block is given (rotary positions, a shared bias), is the model's own doing: it runs with its blocks stubbed.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from losa_cache.backbone.budget import Sizes, fitting_batch, group_blocks
from losa_cache.backbone.mapped import MappedFile
from losa_cache.backbone.taps import watch
from losa_cache.errors import UserError

Weights = list[dict[str, Tensor]]
Arguments = list[tuple[tuple[Any, ...], dict[str, Any]]]
Sink = Callable[[int, Tensor], None]


class StreamedTrunk:
    """A trunk within a budget of device memory.

    Args:
        model: with its weights on the host; what lies outside its blocks is moved to the device.
        blocks: of the model, in order.
        device: to compute on.
        budget: bytes of its memory.
        tokens, width: of a block output.
        pixels: elements of an image.
        file: that the weights lie in: what was read of it is forgotten when it is on the device.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        device: torch.device,
        budget: int,
        *,
        tokens: int,
        width: int,
        pixels: int,
        file: MappedFile | None = None,
    ) -> None:
        self._blocks, self._device, self.budget, self._file = blocks, device, budget, file
        self._image = _work_of_an_image(blocks, tokens=tokens, width=width, pixels=pixels)
        for block in blocks:
            block.to("cpu")
        self._rest = _move_outside(model, blocks, device)
        self._forget()
        self._loader = ThreadPoolExecutor(1, "weights")
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._coming: tuple[tuple[list[range], int, torch.dtype], Future[Weights]] | None = None

    def sizes(self, compute: torch.dtype) -> Sizes:
        """Say what everything takes on the device when matrix products are computed in this dtype."""
        blocks = (_bytes_on_device(block, compute) for block in self._blocks)
        return Sizes(tuple(blocks), self._rest, self._image)

    def fitting_batch(self, most: int, compute: torch.dtype) -> int:
        """Choose how many images a forward pass takes."""
        return fitting_batch(self.sizes(compute), self.budget, most)

    def groups(self, batch: int, compute: torch.dtype) -> list[range]:
        """Choose which blocks are on the device together.

        Raises:
            UserError: if the budget is too small for batches of this size.
        """
        return group_blocks(self.sizes(compute), self.budget, batch)

    def run(
        self,
        batches: Sequence[Callable[[], object]],
        points: Sequence[str],
        sinks: Sequence[Sink],
        *,
        largest: int,
        compute: torch.dtype,
    ) -> None:
        """Run batches through the trunk, within the caller's autocast and inference mode.

        Args:
            batches: each runs the whole model on one batch.
            points: names (``losa_cache.points``).
            sinks: one a batch, as of ``Backbone.run``.
            largest: images in the largest batch.
            compute: dtype of the matrix products.

        Raises:
            UserError: if the budget is too small for them, or the model does more between its blocks than is known.
        """
        groups = self.groups(largest, compute)
        parked: list[Tensor] = []
        given: list[Arguments] = []
        for forward in batches:
            stream, arguments = self._enter(forward)
            parked.append(self._park(stream))
            given.append(given[-1] if given and _alike(given[-1], arguments) else arguments)  # on the device once
        del stream, arguments
        at_work = 0

        def take(at: int, value: Tensor) -> None:
            sinks[at_work](at, value)

        with ExitStack() as hooks:
            for at, point in enumerate(points):
                hooks.callback(watch(self._blocks, point, partial(take, at)).remove)
            for number, group in enumerate(groups):
                weights = self._take_weights(groups, number, compute)
                for at_work, arguments in enumerate(given):
                    stream = parked[at_work].to(self._device, non_blocking=True)
                    stream = self._through(group, weights, stream, arguments)
                    parked[at_work] = self._park(stream) if group is not groups[-1] else torch.empty(0)
                if self._copies is not None:  # what this group takes is given to the next but one
                    torch.cuda.current_stream(self._device).synchronize()
                del weights, stream

    def _through(self, group: range, weights: Weights, stream: Tensor, arguments: Arguments) -> Tensor:
        for at, tensors in zip(group, weights, strict=True):
            more, named = arguments[at]
            stream = functional_call(self._blocks[at], tensors, (stream, *more), named)
        return stream

    def _enter(self, forward: Callable[[], object]) -> tuple[Tensor, Arguments]:
        """Run a model with its blocks stubbed: what enters the first, and what else each of them is given.

        Raises:
            UserError: if a block is given something else than the block before it gave back.
        """
        stream: list[Tensor] = []
        arguments: Arguments = []

        def stub(number: int, value: Tensor, *more: Any, **named: Any) -> Tensor:
            if number != len(arguments) or (stream and value is not stream[0]):
                raise UserError(
                    "this backbone does more between its blocks than pass on its tokens, so they cannot go through "
                    "the device in groups: leave out --max-device-memory, or choose a larger device."
                )
            stream[:] = [value]
            arguments.append((more, named))
            return value

        with ExitStack() as stubs:
            for number, block in enumerate(self._blocks):
                block.forward = partial(stub, number)
                stubs.callback(block.__delattr__, "forward")
            forward()
        return stream[0], arguments

    def _park(self, stream: Tensor) -> Tensor:
        """Keep a batch's residual stream on the host."""
        if stream.device.type == "cpu":
            return stream
        host = torch.empty(stream.shape, dtype=stream.dtype, pin_memory=True)
        return host.copy_(stream, non_blocking=True)  # and back by the same CUDA stream, so in order

    def _take_weights(self, groups: list[range], number: int, compute: torch.dtype) -> Weights:
        """Wait for a group's weights, and send for those of the group that is next, in this run or in the next one."""
        wanted = (groups, number, compute)
        if self._coming is None or self._coming[0] != wanted:
            self._coming = None
            self._send_for(*wanted)
        assert self._coming is not None
        weights = self._coming[1].result()
        if len(groups) > 1:
            self._send_for(groups, (number + 1) % len(groups), compute)
        return weights

    def _send_for(self, groups: list[range], number: int, compute: torch.dtype) -> None:
        coming = self._loader.submit(self._bring, groups[number], compute)
        self._coming = (groups, number, compute), coming

    def _forget(self) -> None:
        if self._file is not None:
            self._file.forget()

    def _bring(self, group: range, compute: torch.dtype) -> Weights:
        """Copy a group's weights to the device: through pinned memory, beside what is computed there."""
        weights: Weights = []
        with torch.cuda.stream(self._copies):  # nothing where there is none
            for at in group:
                placed = {}
                for name, tensor, dtype in _placed(self._blocks[at], compute):
                    if self._copies is None:
                        placed[name] = tensor.to(self._device, dtype, copy=True)
                    else:
                        placed[name] = tensor.to(dtype).pin_memory().to(self._device, non_blocking=True)
                weights.append(placed)
                self._forget()
        if self._copies is not None:
            self._copies.synchronize()
        return weights


def _alike(one: Any, other: Any) -> bool:
    """Tell whether what blocks are given in two batches is the same, as it is unless it depends on the images."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    return bool(one == other)


def _placed(block: nn.Module, compute: torch.dtype) -> Generator[tuple[str, Tensor, torch.dtype], None, None]:
    """Name a block's tensors, and the dtype each has on the device.

    What autocast would round in every forward pass, the operands of linear layers, is rounded on the way.
    """
    operands = {
        f"{name}.{operand}"
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
        for operand in ("weight", "bias")
    }
    for name, tensor in (*block.named_parameters(), *block.named_buffers()):
        yield name, tensor.detach(), compute if name in operands and tensor.dtype == torch.float32 else tensor.dtype


def _bytes_on_device(block: nn.Module, compute: torch.dtype) -> int:
    return sum(tensor.numel() * dtype.itemsize for _, tensor, dtype in _placed(block, compute))


def _work_of_an_image(blocks: Sequence[nn.Module], *, tokens: int, width: int, pixels: int) -> int:
    """Estimate, from above, the bytes of an image's work in a block, in float32.

    In the MLP: the residual stream, its norm, the output, and the hidden layer before and after its activation, or a
    gate beside it; in attention less, if its matrix is never formed, as by torch's fused kernels. Six widths leave room
    for a point's value as it is encoded. And the pixels, uint8 and normalised.
    """
    hidden = max(m.out_features for block in blocks for m in block.modules() if isinstance(m, nn.Linear))
    return 4 * tokens * (6 * width + 3 * hidden) + 9 * pixels


def _move_outside(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> int:
    """Copy the weights outside the blocks to the device, and count their bytes."""
    inside = {module for block in blocks for module in block.modules()}
    size = 0
    for module in model.modules():
        if module in inside:
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(device, copy=True)
            size += parameter.nbytes
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device, copy=True))
            size += buffer.nbytes
    return size

"""What is exported, as a module: pixels to outputs, or block outputs to outputs; and inputs to trace and check it by."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from losa_cache.apply.export.forms import traceable
from losa_cache.backbone import Backbone
from losa_cache.train.trained_adapter import TrainedAdapter

TRACED = 2
"""Samples of the batch that a program is traced with: of 1, exporters take the number for a constant."""
PIXELS = "pixels"


class Exportable(Protocol):
    """A module to export.

    Attributes:
        names: of its inputs, in order.
        shapes: of each for one sample.
    """

    names: list[str]
    shapes: list[tuple[int, ...]]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Compute outputs ``(batch, outputs)``, float32, of inputs ``(batch, *shape)``."""
        ...

    def noise(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Draw inputs."""
        ...

    def expected(self, inputs: Sequence[Tensor]) -> Tensor:
        """Compute what is to come out by losa-cache's own forward pass, in float32."""
        ...


class WithBackbone(nn.Module):
    """Pixels to outputs.

    They come as they are decoded, uint8, and are normalised inside: a program that uses the file resizes and crops, and
    can do nothing else wrong. Bytes are also a quarter of what floats would be on their way to a server.

    Args:
        adapter: around the backbone's tail, of all tokens.
        backbone: on the CPU, not streamed.
    """

    def __init__(self, adapter: TrainedAdapter, backbone: Backbone) -> None:
        super().__init__()
        self._backbone, self._own = backbone, [adapter]  # in a list: only the copy below is exported
        self.trunk, self.adapter = backbone.model, traceable(adapter.adapter)
        self.points, self.names, self.shapes = adapter.points, [PIXELS], [backbone.input.shape]
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(backbone.input, name)).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute outputs ``(batch, outputs)`` of pixels, uint8 ``(batch, *backbone.input.shape)``."""
        images = (pixels.float() / 255 - self.mean) / self.std
        outputs: Tensor = self.adapter(self._backbone.traced(images, self.points))
        return outputs

    def noise(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Draw pixels."""
        seeded = torch.Generator().manual_seed(seed)
        return (torch.randint(0, 256, (batch, *self.shapes[0]), dtype=torch.uint8, generator=seeded),)

    @torch.inference_mode()
    def expected(self, inputs: Sequence[Tensor]) -> Tensor:
        """Run the backbone as extraction does, and the adapter on what it gives."""
        outputs: Tensor = self._own[0](self._backbone.outputs(*inputs, self.points, compute=torch.float32))
        return outputs


class SideOnly(nn.Module):
    """Block outputs to outputs; the inputs have the names of the points that the adapter reads.

    Args:
        adapter: on the CPU.
    """

    def __init__(self, adapter: TrainedAdapter) -> None:
        super().__init__()
        self._own, self.adapter = [adapter], traceable(adapter.adapter)
        sizes = adapter.adapter.tokens, int(adapter.config["adapter"]["width"])
        self.names, self.shapes = adapter.points, [sizes for _ in adapter.points]

    def forward(self, *blocks: Tensor) -> Tensor:
        """Compute outputs ``(batch, outputs)`` of block outputs, float32 ``(batch, tokens, width)`` each."""
        outputs: Tensor = self.adapter(blocks)
        return outputs

    def noise(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Draw block outputs."""
        seeded = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(batch, *shape, generator=seeded) for shape in self.shapes)

    @torch.inference_mode()
    def expected(self, inputs: Sequence[Tensor]) -> Tensor:
        """Run the adapter."""
        outputs: Tensor = self._own[0](inputs)
        return outputs

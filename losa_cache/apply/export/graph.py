"""What is exported, as a module: pixels or block outputs to outputs; and inputs to trace and to check it by."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from losa_cache.apply.export.forms import traceable
from losa_cache.backbone import Backbone
from losa_cache.train.trained_adapter import TrainedAdapter

PIXELS = "pixels"
"""Name of the input of a file with a backbone."""


class Exportable(nn.Module, ABC):
    """A module to export: inputs ``(batch, *shape)`` to outputs ``(batch, outputs)``, float32.

    Args:
        adapter: on the CPU.
        names: of the inputs, in order.
        shapes: of each for one sample.

    Attributes:
        points: of the backbone that the adapter reads.
    """

    def __init__(self, adapter: TrainedAdapter, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self._own = [adapter]  # in a list: what is exported is the copy below
        self.adapter = traceable(adapter.adapter)
        self.points, self.names, self.shapes = list(adapter.points), list(names), list(shapes)

    @abstractmethod
    def noise(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Draw inputs."""

    @abstractmethod
    def expected(self, inputs: Sequence[Tensor]) -> Tensor:
        """Compute what is to come out by losa-cache's own forward pass, in float32."""

    @abstractmethod
    def shape_of(self, batch: Any) -> Any:
        """Say which size of each argument is the number of samples, as ``torch.export`` asks for it."""


class WithBackbone(Exportable):
    """Pixels to outputs.

    They come as they are decoded, uint8, and are normalised inside: a program that uses the file resizes and crops, and
    can do nothing else wrong. Bytes are also a quarter of what floats would be on their way to a server.

    Args:
        adapter: around the backbone's tail, of all tokens.
        backbone: on the CPU, not streamed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, adapter: TrainedAdapter, backbone: Backbone) -> None:
        super().__init__(adapter, [PIXELS], [backbone.input.shape])
        self._backbone, self.trunk = backbone, backbone.model
        self.register_buffer("mean", torch.tensor(backbone.input.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.input.std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute outputs of pixels, uint8 ``(batch, *backbone.input.shape)``."""
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
        (pixels,) = inputs
        outputs: Tensor = self._own[0](self._backbone.outputs(pixels, self.points, compute=torch.float32))
        return outputs

    def shape_of(self, batch: Any) -> Any:
        """Name the first axis of the pixels."""
        return ({0: batch},)


class SideOnly(Exportable):
    """Block outputs to outputs; the inputs have the names of the points that the adapter reads.

    Args:
        adapter: on the CPU.
    """

    def __init__(self, adapter: TrainedAdapter) -> None:
        shape = adapter.adapter.tokens, int(adapter.config["adapter"]["width"])
        super().__init__(adapter, adapter.points, [shape for _ in adapter.points])

    def forward(self, *blocks: Tensor) -> Tensor:
        """Compute outputs of block outputs, float32 ``(batch, tokens, width)`` each."""
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

    def shape_of(self, batch: Any) -> Any:
        """Name the first axis of each of ``*blocks``."""
        return (tuple({0: batch} for _ in self.names),)

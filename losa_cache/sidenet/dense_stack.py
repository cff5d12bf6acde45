"""K adapters of a dense task trained side by side: every activation is read, and layer-normed, once for all of them."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.decoder import Decoders
from losa_cache.sidenet.dense import DenseAdapter, normed, patches_of
from losa_cache.sidenet.operand import Block
from losa_cache.sidenet.stack import AdapterStack


class _Layer(nn.Module):
    """A layer of K decoders: weights and biases, the trial first."""

    def __init__(self, layers: Sequence[nn.Linear | nn.Conv2d]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight for layer in layers]).detach())
        self.bias = nn.Parameter(torch.stack([cast("Tensor", layer.bias) for layer in layers]).detach())

    def decayed(self) -> list[tuple[nn.Parameter, bool]]:
        """List the tensors, and whether weight decay is for them."""
        return [(self.weight, True), (self.bias, False)]

    @torch.no_grad()
    def unstack(self, layers: Sequence[nn.Linear | nn.Conv2d]) -> None:
        """Write each trial's tensors back into a layer."""
        for trial, layer in enumerate(layers):
            layer.weight.copy_(self.weight[trial])
            layer.bias.copy_(self.bias[trial])  # type: ignore[union-attr]


class DenseStack(AdapterStack):
    """Dense adapters around one frozen tail: side networks stacked, and a decoder each.

    Args:
        adapters: of one side network, depth, shape and kind of decoder; their weights are copied.

    Raises:
        ValueError: for side networks that cannot be stacked, or sizes that differ.
    """

    def __init__(self, adapters: Sequence[DenseAdapter]) -> None:
        super().__init__(adapters)
        first = adapters[0]
        self.grid, self.prefix = first.grid, first.prefix
        self.before = nn.ModuleList(map(_Layer, zip(*(own.before for own in adapters), strict=True)))

    @property
    def _layers(self) -> list[_Layer]:
        return [layer for layer in self.before if isinstance(layer, _Layer)]

    def forward(self, blocks: Sequence[Block]) -> Tensor:
        """Outputs ``(K, batch, classes, rows, columns)`` from the k block outputs."""
        others, y = patches_of(self.side, normed(blocks, self.pooling), self.tail, self.pooling, self.prefix)
        layers = [(layer.weight, layer.bias) for layer in self._layers]
        return Decoders((self.weight, self.bias), *layers)(others, y, self.grid)

    @torch.no_grad()
    def unstack(self, adapters: Sequence[Adapter]) -> None:
        """Write each trial's weights back into an adapter of its rank."""
        super().unstack(adapters)
        for layer, own in zip(self._layers, zip(*(own.before for own in adapters), strict=True), strict=True):
            layer.unstack(own)

    def decayed(self) -> list[tuple[nn.Parameter, bool]]:
        """List the trained tensors, trial first, and whether weight decay is for them: matrices, as in one adapter."""
        return [*super().decayed(), *(own for layer in self._layers for own in layer.decayed())]

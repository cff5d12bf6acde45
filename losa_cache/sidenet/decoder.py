"""From tokens of patches to maps: the decoder of dense tasks. *Not from the paper*, which classifies images and videos.

Of every patch it reads a token of each point, one after the other as F features. ``linear`` is a linear map of each
patch by itself, to C outputs. ``conv`` gives C outputs to each of ``DETAIL`` x ``DETAIL`` places in a patch: by a
linear map of its features and of ``HIDDEN`` channels beside them. These come from the features by a linear map and a
3 x 3 convolution over neighbouring patches, with a GELU behind each. It starts as the linear map of the features alone.
The places are put in order as in sub-pixel convolution (Shi et al., "Real-Time Single Image and Video Super-Resolution
Using an Efficient Sub-Pixel Convolutional Neural Network", CVPR 2016).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from losa_cache.sidenet.products import compute_dtype, wide

HIDDEN = 128
"""Channels of the convolution of ``conv``."""
DETAIL = 4
"""Rows and columns of outputs in each patch, of ``conv``."""

Layer = tuple[Tensor, Tensor]
"""Weights and biases of a layer, the decoder first."""


@dataclass(frozen=True)
class Decoders:
    """The weights of S decoders that read the same tokens.

    Attributes:
        last: the linear map to the outputs, ``(S, C, F)`` or, of ``conv``, ``(S, C DETAIL^2, F + HIDDEN)``; biases
            ``(S, ...)``.
        reduce: the first linear map of ``conv``, ``(S, HIDDEN, F)``; biases ``(S, HIDDEN)``.
        mix: the convolution, ``(S, HIDDEN, HIDDEN, 3, 3)``; biases ``(S, HIDDEN)``.
    """

    last: Layer
    reduce: Layer | None = None
    mix: Layer | None = None

    def __call__(self, shared: Sequence[Tensor], own: Tensor, grid: Sequence[int]) -> Tensor:
        """Compute the outputs of every patch.

        Args:
            shared: tokens of the patches that all decoders read, each ``(batch, P, d)``.
            own: those that each reads for itself, ``(S, batch, P, d)``: the last d of the F features.
            grid: rows and columns; P is their product.

        Returns:
            ``(S, batch, C, rows, columns)``, in float32 or wider; of ``conv`` there are ``DETAIL`` times as many rows
            and columns.
        """
        if self.reduce is None or self.mix is None:
            return _linear(self.last, shared, own).mT.unflatten(3, tuple(grid))
        trials, batch, patches, _ = own.shape
        weight, bias = self.last
        direct, from_mixed = weight.split([weight.shape[2] - HIDDEN, HIDDEN], 2)
        hidden = F.gelu(_linear(self.reduce, shared, own))
        maps = hidden.permute(1, 0, 3, 2).reshape(batch, -1, *grid)
        kernels, shifts = (tensor.flatten(0, 1) for tensor in self.mix)
        mixed = F.gelu(F.conv2d(maps, kernels, shifts, padding=1, groups=trials))
        mixed = mixed.view(batch, trials, -1, patches).permute(1, 0, 3, 2)
        found = _linear((direct, bias), shared, own) + _linear((from_mixed, torch.zeros_like(bias)), (), mixed)
        return F.pixel_shuffle(found.mT.unflatten(3, tuple(grid)), DETAIL)


def _linear(layer: Layer, shared: Sequence[Tensor], own: Tensor) -> Tensor:
    """Map features to ``(S, batch, P, M)``; what is shared is read once for all."""
    weight, bias = layer
    trials, batch, patches, width = own.shape
    *parts, last = weight.split(width, 2)
    found = torch.bmm(own.flatten(1, 2).to(dtype := compute_dtype(own, weight)), last.mT.to(dtype))
    found = found.to(wide(found)).view(trials, batch, patches, -1) + bias[:, None, None]
    for tokens, part in zip(shared, parts, strict=True):
        rows = F.linear(tokens.to(dtype), part.flatten(0, 1).to(dtype))
        found = found + rows.view(batch, patches, trials, -1).permute(2, 0, 1, 3)
    return found

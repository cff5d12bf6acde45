"""The contract of a precision: fit on a calibration sample, encode on the device, decode on the device, describe.

A :class:`Precision` is a name and what follows from it; fitted, it is an :class:`Encoding`, whose constants lie in the
store. Stronger encodings come in as further pairs of the two.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CPU_PART = 2**18  # elements


class Precision(ABC):
    """One way of storing block outputs.

    Attributes:
        name: as on the command line and in the manifest.
        dtype: the torch dtype of decoded values.
        stored_dtype: the torch dtype of stored elements.
        storage: their Zarr data type.
        fill: fill value of the array, which decodes as NaN: a missing chunk must never look like zeros.
        dimension: name of a stored token's elements.
        folds: whether :meth:`Encoding.codes` gives factors.
        needs_fit: whether an encoding has constants, so that :meth:`fit` must look at block outputs.
    """

    name: str
    dtype: torch.dtype
    stored_dtype: torch.dtype
    storage: str
    fill: Any
    dimension: str
    folds: bool
    needs_fit: bool

    @property
    def itemsize(self) -> int:
        """Bytes of a stored element."""
        return self.stored_dtype.itemsize

    @abstractmethod
    def columns(self, width: int) -> int:
        """Elements of a stored token of ``width`` channels.

        Raises:
            UserError: for a width that this precision cannot store.
        """

    @abstractmethod
    def fit(self, blocks: Sequence[Tensor]) -> "Encoding":
        """Fit an encoding to a calibration sample: one ``(samples, tokens, width)`` a layer, on the device."""

    @abstractmethod
    def load(self, constants: Mapping[str, Tensor]) -> "Encoding":
        """Rebuild an encoding from its constants.

        Raises:
            KeyError, ValueError: if they are not as :meth:`Encoding.constants` gives them.
        """


class Encoding(ABC):
    """A precision that fits certain layers.

    Attributes:
        precision: what it is of.
    """

    precision: Precision

    @abstractmethod
    def to(self, device: torch.device) -> "Encoding":
        """Give the encoding with its constants on a device."""

    @abstractmethod
    def select(self, positions: Sequence[int]) -> "Encoding":
        """Give the encoding of some of the layers, in this order."""

    @abstractmethod
    def encode(self, layer: int, block: Tensor, out: Tensor) -> Tensor:
        """Encode the block output of one layer.

        Args:
            layer: position among the fitted layers.
            block: ``(batch, tokens, width)``, floating point.
            out: stored elements ``(batch, tokens, columns)``, to be filled.

        Returns:
            a scalar on the device: the largest magnitude; infinite or NaN if any value is.
        """

    @abstractmethod
    def decode(self, layer: int, stored: Tensor) -> Tensor:
        """Give back values ``(batch, tokens, width)`` in ``precision.dtype`` from stored elements on the device."""

    def codes(self, layer: int, stored: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Give the factors of :meth:`decode` where they are few, for products that need no values; else ``None``.

        Returns:
            integer codes ``(batch, tokens, width)``, scales of tokens ``(batch, tokens)`` and channels ``(width,)``:
            values are their product, rounded to ``precision.dtype``.
        """
        return None

    @abstractmethod
    def settle(self, stored: Tensor, extremes: Tensor) -> tuple[Tensor, Tensor]:
        """Saturate overflowed values in place, and count what is not as the backbone gave it.

        Costs nothing for layers whose ``extremes`` lie well within the range.

        Args:
            stored: ``(batch, layers, tokens, columns)``.
            extremes: ``(layers,)``, of :meth:`encode`.

        Returns:
            for each sample of the batch, how many finite values overflowed (now the largest finite value, with their
            sign), and how many decode as infinite or NaN because the backbone gave such.
        """

    @abstractmethod
    def constants(self) -> dict[str, Tensor]:
        """What :meth:`decode` needs to know, by name: float32, the first dimension is the layer."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Say in JSON how values are stored, and ``error``: for each layer (or all alike) the relative error
        ``|decoded - value| / |value|`` (Frobenius norms), as measured on the calibration sample or bounded.
        """

    def rounded(self, layer: int, block: Tensor) -> Tensor:
        """Copy a block output as a cache would give it back."""
        columns = self.precision.columns(block.shape[-1])
        stored = torch.empty(*block.shape[:-1], columns, dtype=self.precision.stored_dtype, device=block.device)
        self.encode(layer, block, stored)
        return self.decode(layer, stored)


def in_parts(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut two tensors ``(batch, …)`` alike: on the CPU into parts that stay in its cache between the steps of an
    encoding (4 ms a ViT-S block of 64 images in place of 18), elsewhere not at all.
    """
    size = len(first)
    if first.device.type == "cpu" and size:
        size = max(1, CPU_PART // first[0].numel())
    yield from zip(first.split(size or 1), second.split(size or 1), strict=True)


@dataclass(frozen=True)
class EncodedBatch:
    """A batch's block outputs, encoded one by one on their device while they are still in its cache.

    Attributes:
        encoding: of them.
        stored: ``(batch, layers, tokens, columns)``.
        extremes: ``(layers,)``, for :meth:`Encoding.settle`.
    """

    encoding: Encoding
    stored: Tensor
    extremes: Tensor

    @classmethod
    def empty(cls, encoding: Encoding, shape: tuple[int, int, int, int], device: torch.device) -> "EncodedBatch":
        """Begin a batch of ``(batch, layers, tokens, columns)``."""
        return cls(
            encoding,
            torch.empty(shape, dtype=encoding.precision.stored_dtype, device=device),
            torch.empty(shape[1], dtype=torch.float32, device=device),
        )

    @classmethod
    def of(cls, encoding: Encoding, blocks: Sequence[Tensor]) -> "EncodedBatch":
        """Encode the block outputs ``(batch, tokens, width)`` of all layers."""
        batch, tokens, width = blocks[0].shape
        shape = (batch, len(blocks), tokens, encoding.precision.columns(width))
        encoded = cls.empty(encoding, shape, blocks[0].device)
        for layer, block in enumerate(blocks):
            encoded.put(layer, block)
        return encoded

    def put(self, layer: int, block: Tensor) -> None:
        """Encode the block output ``(batch, tokens, width)`` of one layer, on its own device."""
        out = self.stored[:, layer]
        there = out if out.device == block.device else torch.empty_like(out, device=block.device)
        self.extremes[layer] = self.encoding.encode(layer, block, there)
        if there is not out:
            out.copy_(there)

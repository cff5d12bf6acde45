"""The contract of a precision: fit on a calibration sample, encode on the device, decode on the device, describe.

A :class:`Precision` is a name and what follows from it. Fitted to samples it gives an :class:`Encoding`, whose
constants lie in the store. A new way of storing values is another pair of the two.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from losa_cache.factors import Codes, Product

CPU_PART = 2**18  # elements


class Precision(ABC):
    """One way of storing block outputs.

    Attributes:
        name: as on the command line and in the manifest.
        dtype: the torch dtype of decoded values.
        stored_dtype: the torch dtype of stored elements.
        storage: their Zarr data type.
        fill: fill value of the array. It decodes as NaN: a missing chunk must never look like zeros.
        dimension: name of the stored elements of a token.
        folds: whether products with :meth:`Encoding.factors` cost no more than products with values.
        images: number of images in a calibration sample; 0: nothing is fitted.
        chained: whether layers are predicted from one another, so that a run reads all of them, whichever it uses.
    """

    name: str
    dtype: torch.dtype
    stored_dtype: torch.dtype
    storage: str
    fill: Any
    dimension: str
    folds: bool
    images: int
    chained = False

    @property
    def itemsize(self) -> int:
        """Bytes of a stored element."""
        return self.stored_dtype.itemsize

    @property
    def layers_read(self) -> str:
        """Which layers of a sample a run reads, in words."""
        if self.chained:
            return "all, whichever a run uses: each is predicted from the one before it"
        return "those that a run uses"

    @abstractmethod
    def require(self, width: int) -> None:
        """Check that tokens of ``width`` channels can be stored.

        Raises:
            UserError: if not.
        """

    @abstractmethod
    def fit(self, blocks: Sequence[Tensor], *, tokens: int, prefix: int) -> "Encoding":
        """Fit an encoding to a calibration sample.

        Args:
            blocks: for each layer ``(samples, tokens kept, width)``, on the device, prefix tokens first; empty if there
                is nothing to fit.
            tokens, prefix: number of tokens of a whole layer, and how many of them come before the patches.
        """

    @abstractmethod
    def load(self, constants: Mapping[str, Tensor], *, tokens: int, prefix: int) -> "Encoding":
        """Rebuild an encoding from its constants.

        Raises:
            KeyError, ValueError: if they are not as :meth:`Encoding.constants` gives them.
        """

    def row(self, points: int, tokens: int, width: int) -> tuple[int, int, int] | None:
        """Give the shape in which a row of such values is stored, as :meth:`Encoding.stored_shape` does.

        ``None`` if the shape depends on the constants.

        Raises:
            UserError: if tokens of ``width`` channels cannot be stored.
        """
        return None

    def stored_layers(self, layers: Sequence[int]) -> list[int]:
        """Give the positions along the array's axis of layers that hold these layers: one for each, unless they share
        one.
        """
        return list(layers)

    def needed(self, layers: Sequence[int]) -> list[int]:
        """Give, ascending, the layers that must be encoded to have these: only these, unless layers are predicted from
        others.
        """
        return sorted(layers)


class Encoding(ABC):
    """A precision that was fitted to certain layers.

    Attributes:
        precision: the precision that was fitted.
    """

    precision: Precision

    @abstractmethod
    def stored_shape(self, layers: int, tokens: int, width: int) -> tuple[int, int, int]:
        """Give the shape ``(stored layers, tokens, columns)`` in which a sample of ``(layers, tokens, width)`` is
        stored.
        """

    @abstractmethod
    def to(self, device: torch.device) -> "Encoding":
        """Give the encoding with its constants on a device."""

    @abstractmethod
    def select(self, positions: Sequence[int]) -> "Encoding":
        """Give the encoding of some layers, in this order."""

    @abstractmethod
    def place(self, stored: Tensor, layer: int) -> Tensor:
        """Give the part of ``(batch, stored layers, tokens, columns)`` that holds a layer, as a view."""

    @abstractmethod
    def encode(self, layer: int, block: Tensor, out: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Encode the block output of one layer.

        Args:
            layer: position among the fitted layers.
            block: ``(batch, tokens, width)``, floating point.
            out: its :meth:`place`, or a tensor like it on the block's device, to be filled.
            before: the second result of this method for the layer before, of the same samples.

        Returns:
            a scalar on the device for :meth:`saturate`: the largest magnitude if it matters, infinite or NaN if any
            value is. And, if layers are chained, what the next layer is predicted from.
        """

    @abstractmethod
    def decode(self, stored: Sequence[Tensor]) -> list[Tensor]:
        """Give the values of every layer, ``(batch, tokens, width)`` in ``precision.dtype``.

        Args:
            stored: elements ``(batch, tokens, columns)`` on the device, one for each of ``precision.stored_layers``.
        """

    def factors(self, stored: Sequence[Tensor], *, rank: int) -> list[Codes] | list[Product] | None:
        """Give the factors of every layer's values, for products that do not need the values; ``None`` if that saves
        nothing.

        Args:
            stored: as of :meth:`decode`.
            rank: inner width of the side layers, which multiply every layer but the last.
        """
        return None

    @abstractmethod
    def saturate(self, stored: Tensor, extremes: Tensor) -> tuple[Tensor, Tensor]:
        """Saturate overflowed values in place, and count the values that differ from the backbone's or are not finite.

        This costs nothing for layers whose ``extremes`` lie well within the range.

        Args:
            stored: ``(batch, stored layers, tokens, columns)``.
            extremes: ``(layers,)``, from :meth:`encode`.

        Returns:
            for each sample of the batch, the number of finite values that overflowed (they are now the largest finite
            value, with their sign), and the number that decode as infinite or NaN because the backbone gave such
            values.
        """

    @abstractmethod
    def constants(self) -> dict[str, Tensor]:
        """Give the constants that :meth:`decode` needs, by name: float32, float16 or uint8."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe in JSON how values are stored.

        ``error`` is the relative error ``|decoded - value| / |value|`` (Frobenius norms) of each layer, or of all
        layers alike. It is measured on the calibration sample, or a bound.
        """

    @abstractmethod
    def round(self, layer: int, block: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Copy a block output as a cache would return it; arguments and second result as in :meth:`encode`."""


class PerLayerEncoding(Encoding):
    """An encoding that stores every layer by itself, token by token."""

    @abstractmethod
    def columns(self, width: int) -> int:
        """Elements of a stored token of ``width`` channels."""

    @abstractmethod
    def encode_layer(self, layer: int, block: Tensor, out: Tensor) -> Tensor:
        """Fill ``(batch, tokens, columns)`` and give the largest magnitude, as :meth:`encode` does."""

    @abstractmethod
    def decode_layer(self, layer: int, stored: Tensor) -> Tensor:
        """Give back values ``(batch, tokens, width)`` from ``(batch, tokens, columns)``."""

    def stored_shape(self, layers: int, tokens: int, width: int) -> tuple[int, int, int]:
        """Store each layer by itself."""
        return layers, tokens, self.columns(width)

    def place(self, stored: Tensor, layer: int) -> Tensor:
        """Give the stored elements of the layer."""
        return stored[:, layer]

    def encode(self, layer: int, block: Tensor, out: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Encode a layer by itself."""
        return self.encode_layer(layer, block, out), None

    def decode(self, stored: Sequence[Tensor]) -> list[Tensor]:
        """Decode every layer by itself."""
        return [self.decode_layer(layer, own) for layer, own in enumerate(stored)]

    def round(self, layer: int, block: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Encode and decode a layer."""
        stored = torch.empty(
            *block.shape[:-1], self.columns(block.shape[-1]), dtype=self.precision.stored_dtype, device=block.device
        )
        self.encode_layer(layer, block, stored)
        return self.decode_layer(layer, stored), None


def in_parts(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Split two tensors ``(batch, …)`` in the same way. On the CPU the parts are so small that they stay in its cache
    between the steps of an encoding (a ViT-S block of 64 images takes 4 ms instead of 18); other devices get one part.
    """
    size = len(first)
    if first.device.type == "cpu" and size:
        size = max(1, CPU_PART // first[0].numel())
    yield from zip(first.split(size or 1), second.split(size or 1), strict=True)


def relative_error(decoded: Tensor, block: Tensor) -> float:
    """Give ``|decoded - value| / |value|`` (Frobenius norms), over finite values."""
    wanted = block.float()
    error = torch.where(wanted.isfinite(), decoded.float() - wanted, 0).nan_to_num(0)
    return float(error.norm() / wanted.nan_to_num(0, 0, 0).norm().clamp_min(1e-30))


@dataclass
class EncodedBatch:
    """The block outputs of a batch. They are encoded one by one, first to last, on their device, while they are in its
    cache.

    Attributes:
        encoding: how they are encoded.
        stored: ``(batch, stored layers, tokens, columns)``.
        extremes: ``(layers,)``, for :meth:`Encoding.saturate`.
    """

    encoding: Encoding
    stored: Tensor
    extremes: Tensor
    _before: Tensor | None = None

    @classmethod
    def empty(cls, encoding: Encoding, batch: int, shape: Sequence[int], device: torch.device) -> "EncodedBatch":
        """Begin a batch of samples of ``(layers, tokens, width)`` values."""
        layers, tokens, width = shape
        stored = (batch, *encoding.stored_shape(layers, tokens, width))
        return cls(
            encoding,
            torch.empty(stored, dtype=encoding.precision.stored_dtype, device=device),
            torch.empty(layers, dtype=torch.float32, device=device),
        )

    @classmethod
    def of(cls, encoding: Encoding, blocks: Sequence[Tensor]) -> "EncodedBatch":
        """Encode the block outputs ``(batch, tokens, width)`` of all layers."""
        batch, tokens, width = blocks[0].shape
        encoded = cls.empty(encoding, batch, (len(blocks), tokens, width), blocks[0].device)
        for layer, block in enumerate(blocks):
            encoded.put(layer, block)
        return encoded

    def put(self, layer: int, block: Tensor) -> None:
        """Encode the block output ``(batch, tokens, width)`` of the next layer, on its own device."""
        out = self.encoding.place(self.stored, layer)
        there = out if out.device == block.device else torch.empty_like(out, device=block.device)
        before = None if self._before is None else self._before.to(block.device)
        self.extremes[layer], after = self.encoding.encode(layer, block, there, before)
        self._before = None if after is None else after.to(out.device)
        if there is not out:
            out.copy_(there)

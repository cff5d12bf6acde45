"""One bit a value and less: every layer is predicted from the decoded layer before it, and only the residual is stored
(``docs/protocol.md``, section "Prediction").

A block adds little to the residual stream, and the stream is almost linear in itself. A d x d matrix for each layer,
fitted on a calibration sample, predicts the layer from what a reader will have decoded, so errors do not accumulate.
The residual is rotated onto its principal axes. Each axis gets as many bits as pay there, many of them none
(``allocation``), and every token has a scale of its own. The last layer is y_0, on which every logit depends, so it is
stored more exactly than the others. Prefix tokens are few and differ from the others, and a CLS head reads only them of
y_k: they are stored as ``int8``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from losa_cache.cache.precision.backend import token_codec_on
from losa_cache.cache.precision.base import Encoding, Precision
from losa_cache.cache.precision.bitplanes import BYTE, unpack
from losa_cache.cache.precision.integers import Integer, IntegerEncoding
from losa_cache.cache.precision.layer_codec import LayerCodec
from losa_cache.cache.precision.token_codec import NOT_FINITE, dequantise, tokens_last
from losa_cache.cache.precision_names import MOST_BITS
from losa_cache.factors import Product

PREFIX = Integer(8, None)


@dataclass(frozen=True)
class PredictEncoding(Encoding):
    """A chain of predicted layers, and the layers of it that are decoded.

    Attributes:
        precision: what it is of.
        codecs: one for each layer of the whole chain.
        prefix_encoding: how prefix tokens are stored.
        tokens, prefix: number of tokens of a layer, and how many of them are prefix tokens.
        chosen: layers that are decoded, in the order of the result.
        errors: relative error of each layer on samples that were not used for the fit; empty if the encoding was
            loaded.
        fitted: the same on the samples of the fit.
    """

    precision: Precision
    codecs: Sequence[LayerCodec]
    prefix_encoding: IntegerEncoding
    tokens: int
    prefix: int
    chosen: Sequence[int]
    errors: list[float] = field(default_factory=list)
    fitted: list[float] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Channels."""
        return len(self.codecs[0].mean)

    @cached_property
    def places(self) -> list[tuple[int, int, int]]:
        """Give for each layer where its prefix tokens begin, where its other tokens begin, and where they end."""
        found, at = [], 0
        for codec in self.codecs:
            middle = at + self.prefix * PREFIX.columns(self.width)
            end = middle + (self.tokens - self.prefix) * codec.token_bytes
            found.append((at, middle, end))
            at = end
        return found

    def stored_shape(self, layers: int, tokens: int, width: int) -> tuple[int, int, int]:
        """All layers of a sample are one row of bytes."""
        return 1, 1, self.places[-1][2]

    def to(self, device: torch.device) -> "PredictEncoding":
        """Move the constants."""
        codecs = [codec.to(device) for codec in self.codecs]
        return replace(self, codecs=codecs, prefix_encoding=self.prefix_encoding.to(device))

    def select(self, positions: Sequence[int]) -> "PredictEncoding":
        """Choose the layers to decode; the chain stays whole."""
        return replace(self, chosen=[self.chosen[at] for at in positions])

    def place(self, stored: Tensor, layer: int) -> Tensor:
        """Give the layer's bytes ``(batch, bytes)``."""
        start, _, end = self.places[layer]
        return stored[:, 0, 0, start:end]

    def encode(self, layer: int, block: Tensor, out: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Store the residual; give the decoded standardised values, ``(batch * tokens, d)``."""
        parts = self._parts(out, layer)
        extreme = torch.zeros((), device=block.device)
        if self.prefix:
            extreme = self.prefix_encoding.encode_layer(layer, block[:, : self.prefix], parts.prefix)
        tables, values = self.codecs[layer].tables, block[:, self.prefix :]
        after = token_codec_on(block.device).encode(values, before, tables, parts.codes, parts.scales, extreme)
        return extreme, after

    def decode(self, stored: Sequence[Tensor]) -> list[Tensor]:
        """Decode layer after layer, up to the last one that is chosen."""
        (together,) = stored
        shape = (len(together), self.tokens, self.width)
        found = {at: torch.empty(shape, dtype=self.precision.dtype, device=together.device) for at in set(self.chosen)}
        decode, state = token_codec_on(together.device).decode, None
        for layer in range(max(self.chosen) + 1):
            parts, out = self._parts(self.place(together[:, None], layer), layer), found.get(layer)
            into = None if out is None else out[:, self.prefix :]
            state = decode(parts.codes, parts.scales, state, self.codecs[layer].tables, into)
            if out is not None and self.prefix:
                self.prefix_encoding.decode_into(layer, parts.prefix, out[:, : self.prefix])
        return [found[layer] for layer in self.chosen]

    def factors(self, stored: Sequence[Tensor], *, rank: int) -> list[Product] | None:
        """Give every layer as the quantised steps of this and all earlier layers, times one matrix.

        ``None`` if that costs more than decoding (the last layer is needed as values in any case). On CUDA it always
        does, because memory is the bottleneck there (a step at ViT-H, rank 16, takes 0.83 ms an image, and 0.50 ms with
        decoding). Also ``None`` if a token is not finite.
        """
        (together,) = stored
        if together.is_cuda or not self._folding_pays(rank):
            return None
        chain = range(max(self.chosen) + 1)
        parts = [self._parts(self.place(together[:, None], layer), layer) for layer in chain]
        if bool(torch.stack([(own.scales == NOT_FINITE).any() for own in parts]).any()):
            return None
        shape = (len(together), self.tokens - self.prefix)
        left = torch.empty(
            self._columns[chain[-1]], *shape, dtype=self.codecs[0].tables.turn.dtype, device=together.device
        )
        found: dict[int, tuple[int, Tensor]] = {}
        for layer, (codec, own) in enumerate(zip(self.codecs, parts, strict=False)):
            columns = slice(self._columns[layer] - len(codec.bits), self._columns[layer])
            codes = unpack(tokens_last(own.codes), codec.tables.bit_planes)
            left[columns] = dequantise(codes, own.scales.flatten(), codec.tables).unflatten(1, shape)
            if layer in self.chosen:
                values = torch.empty(len(together), self.prefix, self.width, dtype=self.precision.dtype)
                if self.prefix:
                    self.prefix_encoding.decode_into(layer, own.prefix, values)
                found[layer] = self._columns[layer], values
        return [
            Product(left[: found[at][0]], self._combined[at], self.codecs[at].mean, found[at][1], self.precision.dtype)
            for at in self.chosen
        ]

    @cached_property
    def _columns(self) -> list[int]:
        """Axes of each layer and of all before it."""
        return list(accumulate(len(codec.bits) for codec in self.codecs))

    @cached_property
    def _combined(self) -> dict[int, Tensor]:
        """Give for each chosen layer the matrix by which all layers up to it add to its values, ``(columns, d)``."""
        found: dict[int, Tensor] = {}
        through = torch.empty(0, self.width, device=self.codecs[0].mean.device)
        for layer, codec in enumerate(self.codecs[: max(self.chosen) + 1]):
            if codec.predictor is not None:
                through = through @ codec.predictor.float()
            through = torch.cat([through, codec.step_sizes[:, None] * codec.axes.float()])
            if layer in self.chosen:
                found[layer] = (through * codec.spread).to(codec.tables.turn.dtype)
        return found

    def _folding_pays(self, rank: int) -> bool:
        """Compare the multiply-adds for a token: products in both passes and the last layer, with the whole chain."""
        *others, last = self.chosen
        folded = 2 * rank * sum(self._columns[layer] for layer in others) + self._columns[last] * self.width
        chain = sum(self.width * (self.width + len(codec.bits)) for codec in self.codecs[: max(self.chosen) + 1])
        return folded < chain + 2 * rank * len(others) * self.width

    def round(self, layer: int, block: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Encode, and decode what follows from it."""
        start, _, end = self.places[layer]
        stored = torch.empty(len(block), end - start, dtype=torch.uint8, device=block.device)
        _, after = self.encode(layer, block, stored, before)
        assert after is not None
        out = torch.empty(block.shape, dtype=self.precision.dtype, device=block.device)
        parts = self._parts(stored, layer)
        token_codec_on(block.device).fill(out[:, self.prefix :], after, parts.scales, self.codecs[layer].tables)
        if self.prefix:
            self.prefix_encoding.decode_into(layer, parts.prefix, out[:, : self.prefix])
        return out, after

    def _parts(self, stored: Tensor, layer: int) -> "_Parts":
        """Split a layer's bytes ``(batch, bytes)`` into its parts."""
        start, middle, _ = self.places[layer]
        patches = self.tokens - self.prefix
        prefix = stored[:, : middle - start].unflatten(1, (self.prefix, -1)) if self.prefix else stored[:, :0]
        scales, codes = stored[:, middle - start :].tensor_split([patches], dim=1)
        return _Parts(prefix, scales, codes.unflatten(1, (self.codecs[layer].token_bytes - 1, patches)))

    def saturate(self, stored: Tensor, extremes: Tensor) -> tuple[Tensor, Tensor]:
        """Count the values of tokens that decode as NaN."""
        overflowed, non_finite = torch.zeros(2, len(stored), dtype=torch.int64)
        for layer in (~extremes.isfinite()).nonzero().flatten().tolist():
            parts = self._parts(self.place(stored, layer), layer)
            non_finite += (parts.scales == NOT_FINITE).sum(1) * self.width
            if self.prefix:
                scales = parts.prefix[..., self.width :].contiguous().view(torch.bfloat16)
                non_finite += scales.isnan().sum((1, 2)) * self.width
        return overflowed, non_finite

    def constants(self) -> dict[str, Tensor]:
        """Give the codecs' tensors; those with one row for each layer are padded to d axes."""

        def rows(values: Sequence[Tensor], filling: float) -> Tensor:
            padded = [torch.nn.functional.pad(own.float(), (0, self.width - len(own)), value=filling) for own in values]
            return torch.stack(padded)

        codecs, d = self.codecs, self.width
        predictors = [codec.predictor for codec in codecs if codec.predictor is not None]
        return {
            "mean": torch.stack([codec.mean for codec in codecs]),
            "spread": torch.stack([codec.spread for codec in codecs]),
            "predictor": torch.stack(predictors) if predictors else codecs[0].axes.new_empty(0, d, d),
            "axes": torch.cat([codec.axes for codec in codecs]),
            "bits": rows([torch.tensor(codec.bits, device=codec.mean.device) for codec in codecs], 0).to(torch.uint8),
            "steps": rows([codec.step_sizes for codec in codecs], 1),
            "deviations": rows([codec.deviations for codec in codecs], 1),
            "channel": self.prefix_encoding.channel,
        }

    def describe(self) -> dict[str, Any]:
        """Give bits a value, for each layer and for all, and errors, on fresh samples and on those of the fit."""
        values = self.tokens * self.width
        sizes = [8 * (end - start) / values for start, _, end in self.places]
        return {
            "bits": round(sum(sizes) / len(sizes), 4),
            "bits_by_layer": [round(size, 4) for size in sizes],
            "error": [float(f"{error:.3g}") for error in self.errors],
            "fitted_error": [float(f"{error:.3g}") for error in self.fitted],
        }


def load_chain(precision: Precision, constants: Mapping[str, Tensor], *, tokens: int, prefix: int) -> PredictEncoding:
    """Rebuild a chain from the constants of :meth:`PredictEncoding.constants`; arguments as in ``Precision.load``.

    Raises:
        KeyError, ValueError: if they are not as that gives them.
    """
    bits, mean = constants["bits"], constants["mean"]
    if bits.dtype != torch.uint8 or bits.shape != mean.shape or not bool((bits <= MOST_BITS).all()):
        raise ValueError("the bits of the axes are not a number a channel from 0 to 8")
    if bool((bits.int().sum(1) % BYTE != 0).any()):
        raise ValueError("the bits of a layer do not fill bytes")
    counts = (bits > 0).sum(1).tolist()
    depth, width = mean.shape
    if constants["axes"].shape != (sum(counts), width) or bool((bits.int().diff(dim=1) > 0).any()):
        raise ValueError("the axes are not one a number of bits, most bits first")
    if constants["predictor"].shape != (depth - 1, width, width):
        raise ValueError("the predictors are not a matrix a layer")
    for name in ("spread", "steps", "deviations", "channel"):
        if constants[name].shape != mean.shape or not bool((constants[name].isfinite() & (constants[name] > 0)).all()):
            raise ValueError(f"the {name} are not finite and positive")
    axes = constants["axes"].split(counts)
    codecs = [
        LayerCodec(
            mean=constants["mean"][at].float(),
            spread=constants["spread"][at].float(),
            predictor=constants["predictor"][at - 1] if at else None,
            axes=axes[at],
            bits=tuple(bits[at, : counts[at]].tolist()),
            step_sizes=constants["steps"][at, : counts[at]].float(),
            deviations=constants["deviations"][at, : counts[at]].float(),
        )
        for at in range(depth)
    ]
    prefixed = PREFIX.load({"channel": constants["channel"]}, tokens=tokens, prefix=prefix)
    return PredictEncoding(precision, codecs, prefixed, tokens, prefix, list(range(depth)))


@dataclass(frozen=True)
class _Parts:
    """The bytes of a layer, as views.

    Attributes:
        prefix: of prefix tokens ``(batch, prefix, columns)``.
        scales: of the other tokens ``(batch, tokens)``.
        codes: of them ``(batch, bytes of a token, tokens)``.
    """

    prefix: Tensor
    scales: Tensor
    codes: Tensor

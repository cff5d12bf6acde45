"""The part of y_k that the frozen tail reads: a few rows, their mean, or all of it.

A CLS head needs one row of y_k, and a mean of unnormed tokens needs one vector: neither needs the n x d tensor. Only a
    norm before the pooling, or attention pooling, does. In all cases only products of the gradient of y_k with the
    layers' matrices are needed; the methods compute these.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from losa_cache.sidenet.products import CHANNEL, TOKEN, correlate, project, update, wide

CPU_PART = 2**19  # elements


class Readout(ABC):
    """A linear map along the tokens, from y_k ``(S, batch, n, d)`` to ``(S, batch, m, d)``.

    y_k is ``start`` and a sum of updates: of each kind states, ``(S, R, batch, q)``, times ``up``, ``(S, R, m)``.
    """

    @abstractmethod
    def select(self, x: Tensor) -> Tensor:
        """Read along the last axis: ``(..., n)`` to ``(..., m)``, as wide as it takes."""

    @abstractmethod
    def spread(self, x: Tensor) -> Tensor:
        """Give the gradient of :meth:`select`: ``(..., m)`` to ``(..., n)``, contiguous."""

    def filled(self, length: int) -> "Readout":
        """Read states that are filled up with zeros to this many tokens."""
        return self

    def rows(self, y: Tensor) -> Tensor:
        """Read ``(..., n, d)``, to ``(..., m, d)``, in float32 or wider."""
        return self.select(y.mT).mT.to(wide(y))

    @abstractmethod
    def read(self, start: Tensor, states: Sequence[Tensor], up: Sequence[Tensor], shift: Tensor) -> Tensor:
        """Read y_k, and add ``shift`` ``(S, m, d)``. In float32 or wider."""

    @abstractmethod
    def pull(self, kind: int, g: Tensor, up: Tensor) -> Tensor:
        """Give the gradient of a kind's states from that of the result, ``(S, batch, m, d)``."""

    @abstractmethod
    def correlate(self, g: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Give the gradients of ``up``."""

    @abstractmethod
    def pull_start(self, g: Tensor) -> Tensor:
        """Give the gradient of y_k itself, ``(S, batch, n, d)``."""


class Whole(Readout):
    """All of y_k, materialised once."""

    def select(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def spread(self, x: Tensor) -> Tensor:
        """Return x."""
        return x.contiguous()

    def read(self, start: Tensor, states: Sequence[Tensor], up: Sequence[Tensor], shift: Tensor) -> Tensor:
        """Add everything up; on the CPU a few samples at a time, so that partial sums stay in its cache."""
        trials, _, batch, _ = states[CHANNEL].shape
        y = torch.empty(trials, *start.shape[1:], dtype=wide(start), device=start.device)
        size = batch if y.device.type != "cpu" else max(1, CPU_PART // (trials * y.shape[2] * y.shape[3]))
        for at in range(0, batch, size):
            part = slice(at, at + size)
            torch.add(start[:, part], shift[:, None], out=y[:, part])
            y[:, part] += update([x[:, :, part] for x in states], up)
        return y

    def pull(self, kind: int, g: Tensor, up: Tensor) -> Tensor:
        """Project g."""
        return project(kind, g, up).contiguous()

    def correlate(self, g: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Correlate g with the states."""
        return correlate(CHANNEL, g, states[CHANNEL]), correlate(TOKEN, g, states[TOKEN])

    def pull_start(self, g: Tensor) -> Tensor:
        """Return g."""
        return g


class Rows(Readout):
    """A few rows of y_k, or their mean: never an n x d tensor."""

    def read(self, start: Tensor, states: Sequence[Tensor], up: Sequence[Tensor], shift: Tensor) -> Tensor:
        """Read every term of the sum."""
        y = self.rows(start) + shift[:, None]
        rows = torch.bmm(self._as(states[CHANNEL]).permute(0, 2, 3, 1).flatten(1, 2), up[CHANNEL])
        tokens = torch.bmm(self._as(up[TOKEN]).mT, states[TOKEN].flatten(2))
        return y + rows.view_as(y) + tokens.view(y.shape[0], y.shape[2], y.shape[1], y.shape[3]).transpose(1, 2)

    def pull(self, kind: int, g: Tensor, up: Tensor) -> Tensor:
        """Multiply g with what was read."""
        trials, batch, m, d = g.shape
        if kind == CHANNEL:
            found = torch.bmm(g.flatten(1, 2), up.mT).view(trials, batch, m, up.shape[1])
            return self.spread(found.permute(0, 3, 1, 2))
        if m == 1:  # as a product of matrices this costs twice what it writes
            return self._as(up)[..., None] * g.transpose(1, 2)
        found = torch.bmm(self._as(up), g.transpose(1, 2).reshape(trials, m, batch * d))
        return found.view(trials, up.shape[1], batch, d)

    def correlate(self, g: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Correlate g with what was read of the channel layers' states, and with the token layers'."""
        channel = torch.bmm(self._as(states[CHANNEL]).flatten(2), g.flatten(1, 2))
        token = torch.bmm(states[TOKEN].flatten(2), g.transpose(1, 2).flatten(2).mT)
        return channel, self.spread(token)

    def pull_start(self, g: Tensor) -> Tensor:
        """Put g where the rows were read."""
        return self.spread(g.mT).mT

    def _as(self, x: Tensor) -> Tensor:
        return self.select(x).to(x.dtype)


@dataclass(frozen=True)
class First(Rows):
    """The first rows, as a CLS head reads them.

    Attributes:
        tokens: n, with those that states are filled up with.
        count: m.
    """

    tokens: int
    count: int

    def filled(self, length: int) -> "First":
        """Read states that are filled up with zeros to this many tokens."""
        return First(length, self.count)

    def select(self, x: Tensor) -> Tensor:
        """Take the first."""
        return x[..., : self.count]

    def spread(self, x: Tensor) -> Tensor:
        """Put zeros behind."""
        return functional.pad(x, (0, self.tokens - self.count)).contiguous()  # pad chooses an order of axes by itself


@dataclass(frozen=True)
class Mean(Rows):
    """The mean of all rows from one on, as global average pooling reads them: m = 1.

    Attributes:
        tokens: n.
        first: of the rows averaged; those before are prefix tokens.
        empty: tokens that states are filled up with.
    """

    tokens: int
    first: int
    empty: int = 0

    def filled(self, length: int) -> "Mean":
        """Read states that are filled up with zeros to this many tokens."""
        return Mean(self.tokens, self.first, length - self.tokens)

    def select(self, x: Tensor) -> Tensor:
        """Average."""
        return x[..., self.first : self.tokens].mean(-1, keepdim=True, dtype=wide(x))

    def spread(self, x: Tensor) -> Tensor:
        """Divide among the rows averaged."""
        count = self.tokens - self.first
        share = (x.contiguous() / count).expand(*x.shape[:-1], count)
        return functional.pad(share, (self.first, self.empty)).contiguous()


@dataclass(frozen=True)
class Pooled(Rows):
    """The mean of the class tokens and the mean of the patches: m = 2.

    Attributes:
        tokens: n.
        classes: class tokens, the first of all.
        first: of the patches.
        empty: tokens that states are filled up with.
    """

    tokens: int
    classes: int
    first: int
    empty: int = 0

    def filled(self, length: int) -> "Pooled":
        """Read states that are filled up with zeros to this many tokens."""
        return Pooled(self.tokens, self.classes, self.first, length - self.tokens)

    def select(self, x: Tensor) -> Tensor:
        """Average both."""
        parts = x[..., : self.classes], x[..., self.first : self.tokens]
        return torch.stack([part.mean(-1, dtype=wide(x)) for part in parts], -1)

    def spread(self, x: Tensor) -> Tensor:
        """Divide among the tokens averaged."""
        out = x.new_zeros(*x.shape[:-1], self.tokens + self.empty)
        out[..., : self.classes] = x[..., :1] / self.classes
        out[..., self.first : self.tokens] = x[..., 1:] / (self.tokens - self.first)
        return out

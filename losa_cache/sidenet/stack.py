"""K adapters trained side by side: every activation is read once for all of them."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.sidenet.adapter import Adapter, probed, refine
from losa_cache.sidenet.blend import Blend
from losa_cache.sidenet.losa import LoSA
from losa_cache.sidenet.operand import Block
from losa_cache.sidenet.packed import Packed
from losa_cache.sidenet.products import CHANNEL, TOKEN
from losa_cache.sidenet.query import OneQuery
from losa_cache.sidenet.query_stack import QueryStack
from losa_cache.sidenet.reader import Reader
from losa_cache.sidenet.readout import Readout, Whole
from losa_cache.sidenet.segments import run_segments


class _Layers(nn.Module):
    """The layers of a kind, of K networks: what :class:`Packed` holds, as parameters."""

    def __init__(self, networks: Sequence[LoSA], kind: int, rank: int) -> None:
        super().__init__()
        padded = [_padded(net.packed(kind), rank) for net in networks]
        self.down = nn.Parameter(torch.cat([p.down for p in padded]).detach())
        self.down_bias = nn.Parameter(torch.cat([p.down_bias for p in padded]).detach())
        self.up = nn.Parameter(torch.cat([p.up for p in padded]).detach().contiguous())
        self.up_bias = nn.Parameter(torch.cat([p.up_bias for p in padded]).detach())
        self.scale = nn.Parameter(torch.cat([p.scale for p in padded]).detach())

    def packed(self) -> Packed:
        """Give them as the fast form takes them."""
        return Packed(self.down, self.down_bias, self.up, self.up_bias, self.scale)

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """List what is trained; nothing where there is no layer of this kind."""
        return [(name, p) for name, p in self.named_parameters() if p.numel()]


class LoSAStack(nn.Module):
    """LoSAs of one depth and shape, each with its own rank and weights, as tensors with the trial first.

    Smaller ranks are filled up with zeros to the largest. A zero row of W_d with a zero bias has a zero state, since
    GELU(0) = 0, so neither it nor its column of W_u ever gets a gradient: it stays what it is, and costs only time.

    Args:
        networks: to stack; their weights are copied.

    Raises:
        ValueError: if they do not mix the same axes of the same length.
    """

    def __init__(self, networks: Sequence[LoSA]) -> None:
        super().__init__()
        first = networks[0]
        if any((net.kinds, net.tokens, net.width) != (first.kinds, first.tokens, first.width) for net in networks):
            raise ValueError("only side networks of one depth, kind and shape can be stacked")
        self.ranks = [net.rank for net in networks]
        self.kinds, self.tokens = first.kinds, first.tokens
        self.segment_length = min(net.segment_length for net in networks)
        rank = max(self.ranks)
        self.channel = _Layers(networks, CHANNEL, rank)
        self.token = _Layers(networks, TOKEN, rank)

    def forward(self, blocks: Sequence[Block], readout: Readout | None = None) -> Tensor:
        """Refine the backbone's output K times.

        Args:
            blocks, readout: as of :meth:`LoSA.forward`.

        Returns:
            y_k of every trial, ``(K, batch, m, width)``.
        """
        packed = (self.channel.packed(), self.token.packed())
        return run_segments(self.kinds, packed, blocks, readout or Whole(), length=self.segment_length)

    def layers(self) -> "tuple[_Layers, _Layers]":
        """Give the layers by kind."""
        return self.channel, self.token

    @torch.no_grad()
    def unstack(self, networks: Sequence[LoSA]) -> None:
        """Write each trial's weights back into a network of its rank."""
        for trial, net in enumerate(networks):
            for kind, own in enumerate(self.layers()):
                for at, layer in enumerate(net.of_kind(kind)):
                    layer.down.weight.copy_(own.down[trial, at, : net.rank])
                    layer.down.bias.copy_(own.down_bias[trial, at, : net.rank])
                    layer.up.weight.copy_(own.up[trial, at, : net.rank].mT)
                    layer.up.bias.copy_(own.up_bias[trial, at])
                    layer.scale.copy_(own.scale[trial, at])

    def keep(self, trials: Sequence[int]) -> None:
        """Forget the ranks of all trials but these; who owns the parameters cuts those."""
        self.ranks = [self.ranks[trial] for trial in trials]

    def decayed(self) -> list[tuple[nn.Parameter, bool]]:
        """List the trained tensors, trial first, and whether weight decay is for them: matrices, as in one network."""
        return [(p, name in ("down", "up")) for own in self.layers() for name, p in own.named()]


def stack_sides(sides: Sequence[nn.Module | None]) -> LoSAStack | QueryStack:
    """Stack side networks of one kind.

    Raises:
        ValueError: for other ones, or sizes that differ.
    """
    if queries := [side for side in sides if isinstance(side, OneQuery)]:
        if len(queries) == len(sides):
            return QueryStack(queries)
    elif len(networks := [side for side in sides if isinstance(side, LoSA)]) == len(sides):
        return LoSAStack(networks)
    raise ValueError("only a LoSA for images, a low-rank MLP or attention by one query can be stacked")


def stack_blends(blends: Sequence[Blend]) -> Blend | None:
    """Stack what training adds to classifiers over all layers, if there is such."""
    if not blends:
        return None
    first = blends[0]
    dropout = [float(blend.dropout) for blend in blends]
    found = Blend(seed=first.seed, dropout=dropout, device=first.share.device)
    found.load_state_dict(first.state_dict() | {"share": torch.stack([blend.share for blend in blends])})
    return found


class AdapterStack(nn.Module):
    """Adapters around one frozen tail: side networks stacked, and a classifier each.

    Args:
        adapters: of one depth and shape, with a LoSA, a low-rank MLP or attention by one query each; their weights are
            copied.

    Raises:
        ValueError: for other side networks, or sizes that differ.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        super().__init__()
        self.side = stack_sides([adapter.side for adapter in adapters])
        self.weight = nn.Parameter(torch.stack([a.classifier.weight for a in adapters]).detach().clone())
        self.bias = nn.Parameter(torch.stack([a.classifier.bias for a in adapters]).detach().clone())
        first = adapters[0]
        self.tail, self.pooling, self.probe = first.tail, first.pooling, first.probe
        readers = [adapter.reader for adapter in adapters if adapter.reader is not None]
        self.reader = Reader.stacked(readers) if readers else None
        self.blend = stack_blends([adapter.blend for adapter in adapters if adapter.blend is not None])

    def both(self, blocks: Sequence[Block]) -> tuple[Tensor, Tensor | None]:
        """Logits ``(K, batch, classes)`` of the side networks' classifiers and, but for training steps, of the probe.

        The probe is the same for all: ``(batch, classes)``.
        """
        assert isinstance(self.side, LoSAStack) and self.pooling is not None
        assert self.probe is not None and self.reader is not None and self.blend is not None
        update, rows = refine(self.side, blocks, self.pooling, self.side.tokens)
        if self.training:
            update = self.blend.dropped(update)
        own = torch.baddbmm(self.bias[:, None], self.reader(rows, update), self.weight.mT)
        return own, None if self.training else probed(self.probe, rows)

    def forward(self, blocks: Sequence[Block]) -> Tensor:
        """Logits ``(K, batch, classes)`` from the k block outputs."""
        if self.blend is not None:
            own, probe = self.both(blocks)
            return own if probe is None else self.blend.blended(own, probe)
        if isinstance(self.side, QueryStack):
            features = self.side(blocks)
        else:
            rows = self.side(blocks, self.tail.readout(self.side.tokens))
            features = self.tail.from_rows(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        return torch.baddbmm(self.bias[:, None], features, self.weight.mT)

    @torch.no_grad()
    def unstack(self, adapters: Sequence[Adapter]) -> None:
        """Write each trial's weights back into an adapter of its rank."""
        self.side.unstack([cast(Any, adapter.side) for adapter in adapters])
        for trial, adapter in enumerate(adapters):
            adapter.classifier.weight.copy_(self.weight[trial])
            adapter.classifier.bias.copy_(self.bias[trial])
            if self.probe is not None and adapter.probe is not self.probe and adapter.probe is not None:
                adapter.probe.load_state_dict(self.probe.state_dict())
            if self.blend is not None and adapter.blend is not None:
                adapter.blend.c.copy_(self.blend.c)
                adapter.blend.steps.copy_(self.blend.steps)
                adapter.blend.share.copy_(self.blend.share[trial])
        if self.reader is not None:
            self.reader.unstack([adapter.reader for adapter in adapters if adapter.reader is not None])

    @torch.no_grad()
    def keep(self, trials: Sequence[int]) -> None:
        """Forget all trials but these; ranks stay filled up to what they were."""
        self.side.keep(trials)
        if self.blend is not None:
            self.blend.keep(trials)
        for parameter, _ in self.decayed():
            parameter.data = parameter.data[list(trials)]
            parameter.grad = None

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("tail.")}

    @torch.no_grad()
    def load_trained(self, state: dict[str, Tensor]) -> None:
        """Take the weights of a :meth:`trained_state` of the same trials, however far their ranks were filled up.

        Raises:
            KeyError: for a tensor that is missing.
        """
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        for name in self.trained_state():
            own[name].data = state[name].to(own[name])

    def decayed(self) -> list[tuple[nn.Parameter, bool]]:
        """List the trained tensors, trial first, and whether weight decay is for them: matrices, as in one adapter."""
        reader = [] if self.reader is None else [(self.reader.queries, True), (self.reader.values, True)]
        return [*self.side.decayed(), *reader, (self.weight, True), (self.bias, False)]


def _padded(own: Packed, rank: int) -> Packed:
    missing = rank - own.down.shape[2]
    return Packed(
        F.pad(own.down, (0, 0, 0, missing)),
        F.pad(own.down_bias, (0, missing)),
        F.pad(own.up, (0, 0, 0, missing)),
        own.up_bias,
        own.scale,
    )

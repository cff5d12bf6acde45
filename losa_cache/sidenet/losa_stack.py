"""K LoSAs, or low-rank MLPs, that train together: every activation is read once for all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.sidenet.losa import LoSA
from losa_cache.sidenet.network import SideStack
from losa_cache.sidenet.operand import Block
from losa_cache.sidenet.packed import Packed
from losa_cache.sidenet.products import CHANNEL, TOKEN
from losa_cache.sidenet.readout import Readout, Whole
from losa_cache.sidenet.segments import run_segments


class _Layers(nn.Module):
    """The layers of a kind, of K networks: what :class:`Packed` holds, as parameters."""

    def __init__(self, networks: Sequence[LoSA], kind: int, rank: int) -> None:
        super().__init__()
        filled = [padded(net.packed(kind), rank) for net in networks]
        self.down = nn.Parameter(torch.cat([p.down for p in filled]).detach())
        self.down_bias = nn.Parameter(torch.cat([p.down_bias for p in filled]).detach())
        self.up = nn.Parameter(torch.cat([p.up for p in filled]).detach().contiguous())
        self.up_bias = nn.Parameter(torch.cat([p.up_bias for p in filled]).detach())
        self.scale = nn.Parameter(torch.cat([p.scale for p in filled]).detach())

    def packed(self) -> Packed:
        """Give the layers in the form that the fast form takes."""
        return Packed(self.down, self.down_bias, self.up, self.up_bias, self.scale)

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """List the trained tensors; empty if there is no layer of this kind."""
        return [(name, p) for name, p in self.named_parameters() if p.numel()]


class LoSAStack(SideStack):
    """LoSAs of one depth and shape, each with its own rank and weights, as tensors with the trial first.

    Smaller ranks are padded with zeros to the largest. A zero row of W_d with a zero bias has a zero state, because
    GELU(0) = 0. So neither the row nor its column of W_u ever gets a gradient: both stay zero, and cost only time.

    Args:
        networks: networks to stack; their weights are copied.

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
        """Drop the ranks of all trials but these; the owner of the parameters drops theirs."""
        self.ranks = [self.ranks[trial] for trial in trials]

    def decayed(self) -> list[tuple[nn.Parameter, bool]]:
        """List the trained tensors, trial first, and whether weight decay is for them: matrices, as in one network."""
        return [(p, name in ("down", "up")) for own in self.layers() for name, p in own.named()]


def stack_losas(networks: Sequence[nn.Module]) -> LoSAStack:
    """Stack networks of one depth, kind and shape.

    Raises:
        ValueError: for different ones, and for those that mix space and time separately.
    """
    losas = [net for net in networks if isinstance(net, LoSA)]
    if len(losas) < len(networks):
        raise ValueError("only a LoSA for images or a low-rank MLP can be stacked with another")
    return LoSAStack(losas)


def padded(own: Packed, rank: int) -> Packed:
    """Pad layers with zeros to a larger rank."""
    missing = rank - own.down.shape[2]
    return Packed(
        F.pad(own.down, (0, 0, 0, missing)),
        F.pad(own.down_bias, (0, missing)),
        F.pad(own.up, (0, 0, 0, missing)),
        own.up_bias,
        own.scale,
    )

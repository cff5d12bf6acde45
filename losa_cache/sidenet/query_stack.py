"""Networks of one learned query that train together: the rows are read, pooled and jittered once for all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from losa_cache.sidenet.network import SideStack
from losa_cache.sidenet.operand import Block
from losa_cache.sidenet.query import OneQuery, attend


class QueryStack(SideStack):
    """K networks of one kind, shape and noise, as tensors with the trial first.

    Args:
        networks: networks to stack; their tensors are copied.

    Raises:
        ValueError: if they differ in anything but their tensors' values.
    """

    def __init__(self, networks: Sequence[OneQuery]) -> None:
        super().__init__()
        self._rows, self._options = networks[0].rows, networks[0].options()
        tensors = [net.named_tensors() for net in networks]
        if len({_kind(net) for net in networks}) > 1:
            raise ValueError("only networks of one kind, shape and seed can be stacked")
        for name, value in networks[0].named_tensors().items():
            stacked = torch.stack([own[name] for own in tensors]).detach()
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, nn.Parameter(stacked))
            else:
                self.register_buffer(name, stacked)

    def forward(self, blocks: Sequence[Block]) -> Tensor:
        """Give every trial's features, ``(K, batch, d)`` (arguments as of :meth:`OneQuery.forward`)."""
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return attend(self._rows(blocks), own, **self._options, training=self.training)

    @torch.no_grad()
    def unstack(self, networks: Sequence[OneQuery]) -> None:
        """Write each trial's tensors back into a network."""
        for trial, net in enumerate(networks):
            for name, value in net.named_tensors().items():
                value.copy_(getattr(self, name)[trial])

    def keep(self, trials: Sequence[int]) -> None:
        """Drop the statistics of all trials but these; the owner of the parameters drops theirs."""
        for name, value in self.named_buffers():
            setattr(self, name, value[list(trials)])

    def decayed(self) -> list[tuple[nn.Parameter, bool]]:
        """List the trained tensors, trial first, and whether weight decay applies to them: only to matrices."""
        return [(parameter, parameter.ndim > 2) for parameter in self.parameters()]


def stack_queries(networks: Sequence[nn.Module]) -> QueryStack:
    """Stack networks of one kind, shape and noise.

    Raises:
        ValueError: for other ones.
    """
    queries = [net for net in networks if isinstance(net, OneQuery)]
    if len(queries) < len(networks):
        raise ValueError("only networks of one query can be stacked with each other")
    return QueryStack(queries)


def _kind(net: OneQuery) -> tuple[object, ...]:
    shapes = tuple((name, value.shape) for name, value in net.named_tensors().items())
    return type(net), tuple(net.options().items()), shapes

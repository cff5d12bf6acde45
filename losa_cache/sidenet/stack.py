"""K adapters trained side by side: every activation is read once for all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from losa_cache.sidenet.adapter import Adapter, probed, refine
from losa_cache.sidenet.blend import Blend
from losa_cache.sidenet.network import SideStack
from losa_cache.sidenet.operand import Block
from losa_cache.sidenet.reader import Reader
from losa_cache.sidenet.spec import listed, load_network, stackable


def stack_sides(adapters: Sequence[Adapter]) -> SideStack:
    """Stack the side networks of adapters.

    Raises:
        ValueError: for a kind of which many cannot train together, several kinds, or sizes that differ.
    """
    first = adapters[0]
    if not all(adapter.spec.stacks for adapter in adapters):
        raise ValueError(f"only {listed(stackable(), 'or')} can be stacked, each with its own kind")
    return load_network(first.name).stack([adapter.side for adapter in adapters])


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
        adapters: of one side network, depth and shape; their weights are copied.

    Raises:
        ValueError: for side networks that cannot be stacked, or sizes that differ.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        super().__init__()
        first = adapters[0]
        self.side = stack_sides(adapters)
        self.weight = nn.Parameter(torch.stack([a.classifier.weight for a in adapters]).detach().clone())
        self.bias = nn.Parameter(torch.stack([a.classifier.bias for a in adapters]).detach().clone())
        self.spec, self.tokens = first.spec, first.tokens
        self.tail, self.pooling, self.probe = first.tail, first.pooling, first.probe
        readers = [adapter.reader for adapter in adapters if adapter.reader is not None]
        self.reader = Reader.stacked(readers) if readers else None
        self.blend = stack_blends([adapter.blend for adapter in adapters if adapter.blend is not None])

    def both(self, blocks: Sequence[Block]) -> tuple[Tensor, Tensor | None]:
        """Logits ``(K, batch, classes)`` of the side networks' classifiers and, but for training steps, of the probe.

        The probe is the same for all: ``(batch, classes)``.
        """
        assert self.pooling is not None and self.blend is not None
        assert self.probe is not None and self.reader is not None
        update, rows = refine(self.side, blocks, self.pooling, self.tokens)
        if self.training:
            update = self.blend.dropped(update)
        own = torch.baddbmm(self.bias[:, None], self.reader(rows, update), self.weight.mT)
        return own, None if self.training else probed(self.probe, rows)

    def forward(self, blocks: Sequence[Block]) -> Tensor:
        """Logits ``(K, batch, classes)`` from the k block outputs."""
        if self.blend is not None:
            own, probe = self.both(blocks)
            return own if probe is None else self.blend.blended(own, probe)
        if not self.spec.tail:
            features = self.side(blocks)
        else:
            rows = self.side(blocks, self.tail.readout(self.tokens))
            features = self.tail.from_rows(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        return torch.baddbmm(self.bias[:, None], features, self.weight.mT)

    @torch.no_grad()
    def unstack(self, adapters: Sequence[Adapter]) -> None:
        """Write each trial's weights back into an adapter of its rank."""
        self.side.unstack([adapter.side for adapter in adapters])
        for trial, adapter in enumerate(adapters):
            adapter.classifier.weight.copy_(self.weight[trial])
            adapter.classifier.bias.copy_(self.bias[trial])
            if self.probe is not None and adapter.probe is not self.probe and adapter.probe is not None:
                adapter.probe.load_state_dict(self.probe.state_dict())
            if self.blend is not None and adapter.blend is not None:
                adapter.blend.setting.copy_(self.blend.setting)
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

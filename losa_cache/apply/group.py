"""Adapters that are computed together, and what they read of a backbone as its blocks come out.

Side networks of one shape are stacked, as in a sweep: their matrices are rows of one matrix, so that every block output
is read once for all of them. The stack owns the weights; the adapters' own parameters become views of it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from losa_cache.apply.block_output import NORMED, PLAIN, ROWS
from losa_cache.sidenet.dense import DenseAdapter
from losa_cache.sidenet.losa import LoSA
from losa_cache.sidenet.losa_stack import padded
from losa_cache.sidenet.operand import Block, Projected
from losa_cache.sidenet.packed import Packed
from losa_cache.sidenet.products import CHANNEL, TOKEN, project
from losa_cache.sidenet.readout import Whole
from losa_cache.sidenet.segments import run_segments
from losa_cache.train.trained_adapter import TrainedAdapter

TOGETHER = 32  # adapters in a stack: 100 of rank 8 took 0.24 x of a ViT-B pass so, and 0.28 in stacks of 16


class Group:
    """Adapters that read the same points in the same form, and whose side networks have one shape.

    Args:
        adapters: one; or several LoSAs, or low-rank MLPs, for images, of tasks with one answer an image.

    Attributes:
        adapters: in the order of the results.
        points: that they read, y_0 the last.
        form: in which they read them.
        projects: whether a block output need not be kept until y_0 is there.
    """

    def __init__(self, adapters: Sequence[TrainedAdapter]) -> None:
        self.adapters = tuple(adapters)
        first = self.adapters[0].adapter
        self.points, self.form = self.adapters[0].points, form_of(self.adapters[0])
        self._dense = first if isinstance(first, DenseAdapter) else None
        self.pooling = None if self._dense is not None else first.pooling
        self._tail, self._tokens, self._spec = first.tail, first.tokens, first.spec
        sides = [adapter.adapter.side for adapter in self.adapters]
        losas = [side for side in sides if isinstance(side, LoSA)]
        self.projects = len(losas) == len(sides) and self._dense is None  # a decoder reads blocks, too
        self._single, self._packed = sides[0], None
        if self.projects:
            self._kinds, self._length = losas[0].kinds, min(side.segment_length for side in losas)
            self._packed = (_stacked(losas, CHANNEL), _stacked(losas, TOKEN))

    @property
    def has_room(self) -> bool:
        """Whether other adapters may join."""
        return self.projects and len(self.adapters) < TOGETHER

    @property
    def block_values(self) -> int:
        """Values of a sample in a block output."""
        return self._tokens * int(self.adapters[0].config["adapter"]["width"])

    def project(self, at: int, block: Tensor, members: Sequence[int], dtype: torch.dtype) -> Projected:
        """Multiply a block output with the matrices of the layer that reads it, of these members.

        Args:
            at: its place in ``points``.
            block: ``(batch, n, d)``, in the group's form.
            members: places in ``adapters``.
            dtype: of the product.
        """
        kind, place = self._layer(at)
        assert self._packed is not None
        weight = _chosen(self._packed[kind], members).down[:, place].to(dtype)
        return Projected(project(kind, block[None].to(dtype), weight).contiguous())

    def projected_values(self, members: int) -> int:
        """Count the values of a sample that stay of all block outputs but y_0, projected for so many members."""
        if self._packed is None:
            return 0
        length = {CHANNEL: self._tokens, TOKEN: self._packed[CHANNEL].down.shape[3]}
        kinds = [self._layer(at)[0] for at in range(len(self.points) - 1)]
        return sum(members * self._packed[kind].down.shape[2] * length[kind] for kind in kinds)

    def _layer(self, at: int) -> tuple[int, int]:
        """Give the kind of a side layer, and its place among those of its kind."""
        return self._kinds[at], self._kinds[:at].count(self._kinds[at])

    def refine(self, blocks: Sequence[Block], members: Sequence[int]) -> Tensor:
        """Run the side networks of these members.

        Args:
            blocks: in the order of ``points``, in their form.
            members: places in ``adapters``.

        Returns:
            what ``Adapter.refined`` gives of each, ``(K, ...)``.
        """
        if self._dense is not None:
            return self._dense.refined_of(blocks)[None]
        if not self._spec.tail:
            return self._single(blocks)[None]
        readout = self._tail.readout(self._tokens) if self.pooling is None else self.pooling.readout(self._tokens)
        if self._packed is None:
            found = self._single(blocks, readout)[None]
        else:
            packed = (_chosen(self._packed[CHANNEL], members), _chosen(self._packed[TOKEN], members))
            found = run_segments(self._kinds, packed, blocks, readout, length=self._length)
        if self.pooling is not None:
            found = found - readout.rows(blocks[-1])  # type: ignore[arg-type]
        return found


def form_of(adapter: TrainedAdapter) -> str:
    """Say in which form an adapter reads what the backbone gives."""
    own = adapter.adapter
    if own.pooling is not None:
        return NORMED
    return ROWS if own.spec.pooled_rows and not own.spec.last_layer else PLAIN


def group_up(adapters: Sequence[TrainedAdapter]) -> list[list[TrainedAdapter]]:
    """Put adapters together whose side networks can be stacked, at most ``TOGETHER`` of them."""
    alike: dict[object, list[list[TrainedAdapter]]] = {}
    for adapter in adapters:
        own = adapter.adapter
        key: object = id(adapter)
        if isinstance(own.side, LoSA) and not isinstance(own, DenseAdapter):
            key = (own.name, form_of(adapter), tuple(adapter.points))
        groups = alike.setdefault(key, [[]])
        whole = own.pooling is None and isinstance(own.tail.readout(own.tokens), Whole)
        if len(groups[-1]) == (1 if whole else TOGETHER):  # several whole y_k at a time would be large
            groups.append([])
        groups[-1].append(adapter)
    return [group for groups in alike.values() for group in groups]


def _stacked(networks: Sequence[LoSA], kind: int) -> Packed:
    """Stack the layers of a kind, smaller ranks filled up with zeros, and make the networks' parameters views of it."""
    rank = max(net.rank for net in networks)
    each = [padded(net.packed(kind), rank).tensors() for net in networks]
    packed = Packed(*(torch.cat(parts).detach() for parts in zip(*each, strict=True)))
    for trial, net in enumerate(networks):
        for at, layer in enumerate(net.of_kind(kind)):
            layer.down.weight.data = packed.down[trial, at, : net.rank]
            layer.down.bias.data = packed.down_bias[trial, at, : net.rank]
            layer.up.weight.data = packed.up[trial, at, : net.rank].mT
            layer.up.bias.data = packed.up_bias[trial, at]
            layer.scale.data = packed.scale[trial, at]
    return packed


def _chosen(packed: Packed, members: Sequence[int]) -> Packed:
    """Take the layers of some of the networks."""
    if len(members) == len(packed.down):
        return packed
    return Packed(*(tensor[list(members)] for tensor in packed.tensors()))

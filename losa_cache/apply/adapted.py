"""``AdaptedModel``: one pass of the frozen backbone, and the predictions of many adapters."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from types import MappingProxyType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from losa_cache.apply.block_output import ROWS, BlockOutput
from losa_cache.apply.group import Group, form_of, group_up
from losa_cache.apply.open import require_fits
from losa_cache.backbone import Backbone
from losa_cache.errors import UserError, nearest
from losa_cache.points import ALL, POOLED
from losa_cache.sidenet.operand import Block
from losa_cache.sidenet.pooled import Pooling, pooling_of
from losa_cache.sidenet.tail import FrozenTail
from losa_cache.train.trained_adapter import TrainedAdapter
from losa_cache.tuned.rebuild import trunk_of

Finish = Callable[[TrainedAdapter, Tensor, Tensor | None], Tensor]
"""What is made of an adapter's refined rows and of the rows of all blocks (``Adapter.refined``)."""


def _outputs(own: TrainedAdapter, refined: Tensor, rows: Tensor | None) -> Tensor:
    return own.adapter.outputs(refined, rows)


@dataclass(frozen=True)
class _Members:
    """The adapters at a time. They are replaced as a whole, so that a pass which runs keeps its own.

    Attributes:
        by_name: all of them.
        groups: those beside the frozen backbone, which one pass of it serves.
        changed: those that were trained inside it: the changed backbone of each, and a group of itself.
    """

    by_name: Mapping[str, TrainedAdapter] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    changed: tuple[tuple[Backbone, Group], ...] = ()


class AdaptedModel:
    """A frozen backbone with many adapters: one forward pass serves all of them (§3.3 of the paper).

    An adapter that was trained inside the backbone (``train --method``) takes a pass of its own, through a copy of the
    backbone that is changed as it says. Side networks of one shape are computed together. Their inputs are taken as the
    blocks come out: a block output is kept until the last block only where that takes less memory than its products
    with the adapters' matrices. Adapters can be added, removed and renamed while another thread computes.

    >>> model = lc.AdaptedModel(backbone, {"birds": lc.load_adapter("runs/birds")})  # doctest: +SKIP
    >>> logits = model(pixels)["birds"]  # doctest: +SKIP

    Args:
        backbone: on its device.
        adapters: by name. Their weights are shared with the model, not copied where that can be.

    Attributes:
        backbone: that is run.

    Raises:
        UserError: for an adapter that was trained on another backbone, naming the fields that differ.
    """

    def __init__(self, backbone: Backbone, adapters: Mapping[str, TrainedAdapter] | None = None) -> None:
        self.backbone = backbone
        self._pooling = pooling_of(backbone.tail.config)
        self._tail = FrozenTail(backbone.tail.config, backbone.tail.state_dict()).to(backbone.device)
        self._members, self._changing = _Members(), Lock()
        self._trunks: WeakKeyDictionary[TrainedAdapter, Backbone] = WeakKeyDictionary()
        self._replace({name: self._fitted(name, adapter) for name, adapter in (adapters or {}).items()})

    @property
    def adapters(self) -> Mapping[str, TrainedAdapter]:
        """The adapters by name, as they are now."""
        return MappingProxyType(self._members.by_name)

    def add(self, name: str, adapter: TrainedAdapter, *, trial: Tensor | None = None) -> None:
        """Add an adapter.

        Args:
            name: that it gets.
            adapter: as of the model's start.
            trial: images that it must compute first, alone.

        Raises:
            UserError: if the name is taken, it was trained on another backbone, or it gives values on the trial that
                are not finite.
        """
        fitted = self._fitted(name, adapter)
        if trial is not None:
            (found,) = self._run(trial, [name], _outputs, self._members_of({name: fitted})).values()
            if not bool(found.isfinite().all()):
                raise UserError(f"adapter {name!r} gives values that are not finite: save it anew.")
        with self._changing:
            self._require_free(name)
            self._replace({**self._members.by_name, name: fitted})

    def remove(self, name: str) -> None:
        """Remove an adapter.

        Raises:
            UserError: if there is none of that name.
        """
        with self._changing:
            self._require(name)
            self._replace({known: own for known, own in self._members.by_name.items() if known != name})

    def rename(self, old: str, new: str) -> None:
        """Give an adapter another name.

        Raises:
            UserError: if there is none of the old name, or the new one is taken.
        """
        with self._changing:
            self._require(old)
            self._require_free(new)
            names = {known: new if known == old else known for known in self._members.by_name}
            renamed = {names[known]: own for known, own in self._members.by_name.items()}
            self._members = replace(self._members, by_name=renamed)

    def __call__(self, pixels: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Compute the outputs of adapters on images.

        Args:
            pixels: ``(batch, *backbone.input.shape)``: uint8, as ``backbone.input.transform()`` gives them, or float32
                that ``backbone.input.normalise`` made of them.
            names: of the adapters; by default all.

        Returns:
            by name: logits ``(batch, classes)``, or the outputs of another task; float32, on the device.

        Raises:
            UserError: for a name that is unknown.
        """
        return self._run(pixels, names, _outputs, self._members)

    def embed(self, pixels: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Compute the refined feature vectors of images (:meth:`TrainedAdapter.embed`).

        Args:
            pixels, names: as of :meth:`__call__`.

        Returns:
            by name: ``(batch, features)``, float32, on the device.
        """
        return self._run(pixels, names, lambda own, refined, rows: own.adapter.features(refined, rows), self._members)

    @torch.inference_mode()
    def _run(self, pixels: Tensor, names: Iterable[str] | None, finish: Finish, members: _Members) -> dict[str, Tensor]:
        if tuple(pixels.shape[1:]) != self.backbone.input.shape or not len(pixels):
            shape = " x ".join(map(str, self.backbone.input.shape))
            raise UserError(
                f"pixels are of the shape {tuple(pixels.shape)}: give at least one image of {shape}, as "
                "backbone.input.transform() makes them."
            )
        chosen = list(dict.fromkeys(members.by_name if names is None else names))
        for name in chosen:
            self._require(name, members)
        if not chosen:
            return {}
        wanted = {id(members.by_name[name]) for name in chosen}
        compute = self._compute_dtype(members)
        parts: list[dict[int, Tensor]] = []
        for part in pixels.split(self.backbone.fitting_batch(max(1, len(pixels)), compute)):
            near, found = part.to(self.backbone.device, non_blocking=True), dict[int, Tensor]()
            passes = [(self.backbone, _Reading(members.groups, wanted, self._pooling, compute))]
            passes += [(own, _Reading([group], wanted, self._pooling, torch.float32)) for own, group in members.changed]
            for backbone, reading in passes:
                if not reading.points:
                    continue
                backbone.run(near, reading.points, reading.take, compute=compute)
                with torch.autocast(backbone.device.type, torch.bfloat16, enabled=compute != torch.float32):
                    found |= reading.finish(finish)
            parts.append(found)
        each = {name: id(members.by_name[name]) for name in chosen}
        return {name: torch.cat([part[key] for part in parts]) for name, key in each.items()}

    def _compute_dtype(self, members: _Members) -> torch.dtype:
        """Choose the dtype that the caches of the adapters were computed in; of different ones the finest."""
        found = {own.config["cache"]["fields"]["precision"] for own in members.by_name.values()}
        finest = next((name for name in ("float32", "float16") if name in found), "bfloat16")
        return self.backbone.compute_dtype(finest)

    def _fitted(self, name: str, adapter: TrainedAdapter) -> TrainedAdapter:
        """Put an adapter around the backbone's own tail, on its device."""
        if not isinstance(adapter, TrainedAdapter):
            raise UserError(f"adapter {name!r} is {adapter!r:.60}: load it first, with losa_cache.load_adapter.")
        require_fits(name, adapter, self.backbone)
        if adapter.method is not None:
            own = adapter.to(self.backbone.device).around(adapter.adapter.tail, tokens=self.backbone.tokens)
            self._trunks[own] = trunk_of(self.backbone, own)
            return own
        pooled = form_of(adapter) == ROWS
        tokens = self._pooling.rows if pooled else self.backbone.tokens
        return adapter.to(self.backbone.device).around(self._tail, tokens=tokens, holds=POOLED if pooled else ALL)

    def _replace(self, by_name: Mapping[str, TrainedAdapter]) -> None:
        self._members = self._members_of(by_name)

    def _members_of(self, by_name: Mapping[str, TrainedAdapter]) -> _Members:
        """Group adapters, with those groups as they are of which none is gone or new."""
        known = {tuple(map(id, group.adapters)): group for group in self._members.groups}
        beside = [own for own in by_name.values() if own not in self._trunks]
        kept = [group for key, group in known.items() if {*key} <= {id(own) for own in beside}]
        full = [group for group in kept if not group.has_room]
        grouped = {id(own) for group in full for own in group.adapters}
        others = group_up([own for own in beside if id(own) not in grouped])
        made = [known.get(tuple(map(id, group))) or Group(group) for group in others]
        changed = [(self._trunks[own], Group([own])) for own in by_name.values() if own in self._trunks]
        return _Members(dict(by_name), (*full, *made), tuple(changed))

    def _require(self, name: str, members: _Members | None = None) -> None:
        known = (members or self._members).by_name
        if name not in known:
            listed = ", ".join(map(repr, known)) or "none"
            raise UserError(f"there is no adapter {name!r}: there are {listed}{nearest(name, list(known))}.")

    def _require_free(self, name: str) -> None:
        if name in self._members.by_name:
            raise UserError(f"an adapter {name!r} is there already: remove it first, or choose another name.")


class _Reading:
    """One batch on its way through the backbone.

    Args:
        groups: of all adapters.
        wanted: ids of those that are asked for.
        pooling: of the backbone.
        kept: dtype in which block outputs are kept: that of the backbone's matrix products, as in a cache; float32 for
            adapters that were trained on what was not rounded.
    """

    def __init__(self, groups: Sequence[Group], wanted: set[int], pooling: Pooling, kept: torch.dtype) -> None:
        members = [[at for at, own in enumerate(group.adapters) if id(own) in wanted] for group in groups]
        self._groups = [(group, own) for group, own in zip(groups, members, strict=True) if own]
        self._pooling, self._kept = pooling, kept
        self._projects = _projecting_is_smaller(self._groups)
        self._blocks: list[dict[str, Block]] = [{} for _ in self._groups]
        self._rows: dict[str, Tensor] = {}
        self.points = list(dict.fromkeys(point for group, _ in self._groups for point in group.points))

    def take(self, at: int, value: Tensor) -> None:
        """Take what the backbone gives at a point, ``(batch, n, d)``."""
        point, output = self.points[at], BlockOutput(value.to(self._kept), self._pooling)
        products = self._kept if self._kept == torch.float32 else torch.bfloat16
        for (group, members), blocks in zip(self._groups, self._blocks, strict=True):
            if point not in group.points:
                continue
            block, place = output.form(group.form), group.points.index(point)
            if group.pooling is not None:
                self._rows[point] = output.rows
            last = place == len(group.points) - 1
            kept = last or not (self._projects and group.projects)
            blocks[point] = block if kept else group.project(place, block, members, products)

    def finish(self, finish: Finish) -> dict[int, Tensor]:
        """Compute what is asked for, in float32, by the ids of the adapters."""
        found = {}
        for (group, members), blocks in zip(self._groups, self._blocks, strict=True):
            refined = group.refine([blocks[point] for point in group.points], members)
            rows = None
            if group.pooling is not None:
                rows = torch.cat([self._rows[point] for point in group.points], 1)
            blocks.clear()
            for own, member in zip(refined, members, strict=True):
                adapter = group.adapters[member]
                found[id(adapter)] = finish(adapter, own, rows).float()
        return found


def _projecting_is_smaller(groups: Sequence[tuple[Group, Sequence[int]]]) -> bool:
    """Tell whether the products of block outputs with the adapters' matrices take less memory than these themselves.

    What groups without such products keep in any case is not counted.
    """
    kept = {(point, group.form) for group, _ in groups if not group.projects for point in group.points}
    wanted = {(point, group.form) for group, _ in groups if group.projects for point in group.points[:-1]}
    size = max((group.block_values for group, _ in groups), default=0)
    return sum(group.projected_values(len(own)) for group, own in groups) < len(wanted - kept) * size

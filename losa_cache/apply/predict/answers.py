"""From outputs of adapters to the numbers of a table."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from losa_cache.apply.predict.journal import Skipped
from losa_cache.apply.predict.table import (
    FEATURES,
    IMAGES,
    LABELS,
    MAPS,
    NUMBERS,
    RANKED,
    Answer,
    Rows,
    Table,
    Values,
    plain,
)
from losa_cache.targets.target_set import MASK, MULTILABEL
from losa_cache.tasks import Task
from losa_cache.train.trained_adapter import TrainedAdapter

Found = tuple[Rows, list[Skipped]]
"""Answers of a batch, and its inputs without one."""


def table_of(adapters: Mapping[str, TrainedAdapter], *, top_k: int, embed: bool, of: str = IMAGES) -> Table:
    """Say what a table of these adapters holds.

    Args:
        adapters: by name.
        top_k: classes of each input, as far as there are so many.
        embed: whether it holds feature vectors.
        of: as of :class:`Table`.
    """
    return Table(tuple(_answer(name, own, top_k, embed) for name, own in adapters.items()), of)


def _answer(name: str, adapter: TrainedAdapter, top_k: int, embed: bool) -> Answer:
    digest = adapter.digest
    if embed:
        return Answer(plain(name), FEATURES, adapter.features, digest)
    if adapter.task.ranks:
        classes = tuple(map(plain, adapter.classes))
        if adapter.task.kind == MULTILABEL:
            return Answer(plain(name), LABELS, 2 * len(classes), digest, classes)
        return Answer(plain(name), RANKED, 2 * min(top_k, len(classes)), digest, classes)
    if adapter.task.dense:
        shape = tuple(adapter.task.constants["size"])
        classes = tuple(map(plain, adapter.classes)) if adapter.task.kind == MASK else ()
        return Answer(plain(name), MAPS, math.prod(shape), digest, classes, shape)
    outputs = torch.zeros(1, 1, int(adapter.config["adapter"]["classes"]))
    decided = adapter.task.decided(adapter.task.predictions(outputs))
    columns = tuple(map(plain, adapter.task.columns(adapter.classes)))
    return Answer(plain(name), NUMBERS, decided[0, 0].numel(), digest, columns)


class Answering:
    """The answers to a batch, put together of all clips of its videos.

    Args:
        table: that they are for.
        adapters: in its order.

    Attributes:
        table: that they are for.
    """

    def __init__(self, table: Table, adapters: Mapping[str, TrainedAdapter]) -> None:
        self.table = table
        self._each = list(zip(table.answers, adapters.items(), strict=True))
        self._sums: dict[str, Tensor] = {}
        self._finite: dict[str, Tensor] = {}

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        """Take the outputs, or the features, of a clip of every video; images have one.

        Args:
            outputs: by adapter, float32 ``(batch, outputs)``.
        """
        for answer, (name, adapter) in self._each:
            finite = all_finite(outputs[name])
            self._finite[name] = self._finite[name] & finite if name in self._finite else finite
            own = outputs[name][None] if answer.kind == FEATURES else adapter.task.predictions(outputs[name][None])
            if name not in self._sums:
                self._sums[name] = own
            elif answer.kind == FEATURES:
                self._sums[name] = self._sums[name] + own
            else:
                self._sums[name] = adapter.task.sum_clips(self._sums[name], own)

    def found(self, ids: Sequence[str], clips: int, failures: Mapping[int, str]) -> Found:
        """Give the answers of the batch, averaged over so many clips, and its inputs that have none.

        Args:
            ids: of all inputs of the batch.
            clips: that were added.
            failures: why inputs have no pixels, by their places.
        """
        values, failures = self._values(clips), {**self._broken(), **failures}
        kept = [place for place in range(len(ids)) if place not in failures]
        bad = [Skipped(ids[place], plain(reason)) for place, reason in sorted(failures.items())]
        return Rows([ids[place] for place in kept], tuple(own[kept] for own in values)), bad

    def _values(self, clips: int) -> tuple[Values, ...]:
        """Give the numbers of the table, ``(batch, width)`` of each adapter."""
        found = []
        for answer, (name, adapter) in self._each:
            total = self._sums.pop(name)
            if answer.kind == FEATURES:
                numbers = total / clips
            elif answer.kind == RANKED:
                numbers = _ranked(adapter.task, adapter.task.average_clips(total, clips), answer.width // 2)
            elif answer.kind == LABELS:
                numbers = _labelled(adapter.task, adapter.task.average_clips(total, clips))
            else:
                numbers = adapter.task.decided(adapter.task.average_clips(total, clips))
            found.append(np.ascontiguousarray(numbers.reshape(-1, answer.width).float().cpu().numpy()))
        return tuple(found)

    def _broken(self) -> dict[int, str]:
        """Say which inputs have outputs that are no answer, by their places, and of which adapter."""
        found: dict[int, str] = {}
        for _, (name, _) in self._each:
            for place in (~self._finite.pop(name)).nonzero().flatten().tolist():
                found.setdefault(place, not_finite(name))
        return found

    def no_rows(self) -> Rows:
        """Give the rows of a batch without any."""
        return Rows([], tuple(np.empty((0, answer.width), np.float32) for answer in self.table.answers))


def all_finite(outputs: Tensor) -> Tensor:
    """Tell of each input of a batch whether all of its outputs ``(batch, ...)`` are finite, bool ``(batch,)``."""
    return outputs.flatten(1).isfinite().all(1)


def not_finite(name: str) -> str:
    """Say what is wrong with the outputs of an adapter, where they are no answer."""
    return f"adapter {plain(name)!r} gives outputs that are infinite or not numbers"


def _ranked(task: Task, predictions: Tensor, count: int) -> Tensor:
    """Give numbers and probabilities of the answer and the most probable classes in turn, ``(..., batch, 2 count)``."""
    classes = task.likeliest(predictions, count)
    return torch.stack([classes.float(), task.probability(predictions.gather(-1, classes))], -1).flatten(-2)


def _labelled(task: Task, predictions: Tensor) -> Tensor:
    """Give the probability of each label and whether it is predicted in turn, ``(..., batch, 2 labels)``."""
    return torch.stack([task.probability(predictions), task.decided(predictions).to(predictions)], -1).flatten(-2)

"""What the computing thread does: a batch of images through the backbone, and an answer for each of its requests."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.apply.adapted import AdaptedModel
from losa_cache.apply.predict.answers import all_finite, not_finite
from losa_cache.apply.serve.metrics import Metrics
from losa_cache.apply.serve.refused import RefusedError
from losa_cache.errors import nearest
from losa_cache.train.trained_adapter import TrainedAdapter

PREDICT, EMBED = "predict", "embed"
"""Kinds of requests. A batch holds one of them."""

Answer = dict[str, list[Any]]
"""By adapter: what its task answers, the likeliest first, or a feature vector."""


@dataclass(frozen=True)
class Asked:
    """A decoded request.

    Attributes:
        pixels: uint8, shaped as ``InputSpec.shape``.
        names: of adapters; ``None``: all.
        top_k: answers of each adapter, at most.
    """

    pixels: NDArray[np.uint8]
    names: tuple[str, ...] | None
    top_k: int


class Answers:
    """Compute batches of requests. The model may be changed only between two calls.

    Args:
        model: that computes.
        metrics: are told of every batch.
    """

    def __init__(self, model: AdaptedModel, metrics: Metrics) -> None:
        self._model, self._metrics = model, metrics

    def __call__(self, kind: str, batch: Sequence[Asked]) -> list[Answer | RefusedError]:
        """Answer a batch: one pass of the backbone, with all adapters that any of its requests names."""
        started, adapters = perf_counter(), self._model.adapters
        results = [_begun(asked, adapters) for asked in batch]
        answered = [
            (asked, own) for asked, own in zip(batch, results, strict=True) if not isinstance(own, RefusedError)
        ]
        if answered:
            pixels = torch.from_numpy(np.stack([asked.pixels for asked, _ in answered]))
            names = dict.fromkeys(name for _, answer in answered for name in answer)
            found = (self._model.embed if kind == EMBED else self._model)(pixels, names)
            for name, values in found.items():
                _fill(name, values, None if kind == EMBED else adapters[name], answered)
            places = [place for place, own in enumerate(results) if not isinstance(own, RefusedError)]
            for number, name in _broken(found, answered).items():
                results[places[number]] = RefusedError(500, f"{not_finite(name)} for this image: leave it out.")
            self._metrics.computed(len(answered), perf_counter() - started)
        return results


def require_known(names: Iterable[str], adapters: Mapping[str, TrainedAdapter]) -> None:
    """Refuse names of adapters that are not there.

    Raises:
        RefusedError: naming the first one.
    """
    for name in names:
        if name not in adapters:
            close = nearest(name, list(adapters), shown=1)
            raise RefusedError(404, f"there is no adapter {name!r}{close}: GET /adapters lists them.")


def _begun(asked: Asked, adapters: Mapping[str, TrainedAdapter]) -> Answer | RefusedError:
    """Begin an answer with the adapters that it will have; one may have been removed while the request waited."""
    names = tuple(adapters) if asked.names is None else asked.names
    try:
        require_known(names, adapters)
    except RefusedError as refused:
        return refused
    return {name: [] for name in names}


def _broken(found: Mapping[str, Tensor], answered: Sequence[tuple[Asked, Answer]]) -> dict[int, str]:
    """Name an adapter whose outputs are no answer, by the number of the image, of those that the request wants."""
    return {
        number: name
        for name, values in found.items()
        for number in (~all_finite(values)).nonzero().flatten().tolist()
        if name in answered[number][1]
    }


@torch.inference_mode()
def _fill(name: str, values: Tensor, adapter: TrainedAdapter | None, answered: list[tuple[Asked, Answer]]) -> None:
    """Put what an adapter gives of the images into the answers that want it.

    Args:
        name: of the adapter.
        values: ``(images, outputs)``, or feature vectors ``(images, features)``.
        adapter: whose outputs they are; ``None`` for feature vectors.
        answered: the request and the answer of each image.
    """
    rows = [row for row, (_, answer) in enumerate(answered) if name in answer]
    if adapter is None:
        told: list[Any] = values[rows].tolist()
    else:
        most = max(answered[row][0].top_k for row in rows)
        predictions = adapter.task.predictions(values[rows][None])[0]
        told = adapter.task.answers(predictions, adapter.classes, most)
    for row, own in zip(rows, told, strict=True):
        asked, answer = answered[row]
        answer[name] = own if adapter is None else own[: asked.top_k]

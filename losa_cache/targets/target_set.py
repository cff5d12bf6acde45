"""A target set: what is to be learned for the samples of a cache or of a data set."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LABELS = "labels"
"""Name of the target set that a cache or a data set has by itself: the class of each sample."""

CLASS, MULTILABEL, NUMBERS, MASK, DEPTH = "class", "multilabel", "numbers", "mask", "depth"
KINDS = (CLASS, MULTILABEL, NUMBERS, MASK, DEPTH)
UNKNOWN = -1
"""A label of which nobody says whether it applies, in a set of several labels; a class of a sample that was skipped."""
IGNORED = 255
"""A pixel of a mask that counts neither in the loss nor in a metric."""

DTYPES = {CLASS: "int64", MULTILABEL: "int8", NUMBERS: "float32", MASK: "uint8", DEPTH: "float32"}
"""Data type of the values, by kind."""
DIMENSIONS = {CLASS: 1, MULTILABEL: 2, NUMBERS: 2, MASK: 3, DEPTH: 3}
"""Dimensions of the values, by kind: the first is that of the samples."""


@dataclass(frozen=True, eq=False)
class TargetSet:
    """Targets of all samples, in the order of the samples.

    Attributes:
        name: by which a run chooses it.
        kind: one of ``KINDS``.
        names: of the classes that the values number (``class``, ``mask``), of the labels or the columns (``multilabel``,
            ``numbers``), or ``["depth"]``.
        values: ``class``: the number of each sample's class, int64 ``(N,)``; ``multilabel``: 1 where a label applies, 0
            where it does not, ``UNKNOWN`` where nobody says, int8 ``(N, labels)``; ``numbers``: float32
            ``(N, columns)``; ``mask``: the class of each pixel, or ``IGNORED``, uint8 ``(N, height, width)``; ``depth``:
            above 0, NaN where it was not measured, float32 ``(N, height, width)``.
    """

    name: str
    kind: str
    names: Sequence[str]
    values: NDArray[Any]

    @property
    def fingerprint(self) -> str:
        """A sha256 over everything but the name."""
        described = json.dumps([self.kind, list(self.names), str(self.values.dtype), self.values.shape])
        digest = hashlib.sha256(described.encode())
        digest.update(np.ascontiguousarray(self.values).data)
        return f"sha256:{digest.hexdigest()}"

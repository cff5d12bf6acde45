"""What is written of every input: a row with its id, and the answers of each adapter as numbers. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RANKED, LABELS, NUMBERS, MAPS, FEATURES = "ranked", "labels", "numbers", "maps", "features"
"""Kinds of answers: the most probable classes; every label, with its probability and whether it is predicted; the
numbers, or the map, that a task predicts; a feature vector."""
IMAGES = "images"

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """What a row holds of an adapter.

    Attributes:
        name: of the adapter.
        kind: ``ranked``: the number of a class and its probability, in turn, the most probable class first.
            ``labels``: the probability of each label, and 1 or 0, whether it is predicted, in turn.
            ``numbers``, ``maps``, ``features``: what the task, or the side network, gives.
        width: numbers of a row.
        digest: of the adapter's weights.
        classes: names of the classes, where they are ranked; of the labels; of the numbers, where they have names; of
            the classes that pixels number.
        shape: rows and columns of a map.
    """

    name: str
    kind: str
    width: int
    digest: str
    classes: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Names of its columns in a flat table; a feature vector, or a map, has one."""
        if self.kind in (FEATURES, MAPS):
            return [self.name]
        if self.kind == NUMBERS:
            names = self.classes or [f"value_{place + 1}" for place in range(self.width)]
            return [f"{self.name}.{name}" for name in names]
        if self.kind == LABELS:
            return [f"{self.name}.{name}.{what}" for name in self.classes for what in ("probability", "predicted")]
        return [
            f"{self.name}.{what}_{place + 1}" for place in range(self.width // 2) for what in ("class", "probability")
        ]

    @property
    def titles(self) -> list[str]:
        """Head the columns of a table for people: a label with its probability is one."""
        if self.kind in (LABELS, NUMBERS) and self.classes:
            return list(self.classes)
        return [str(place + 1) for place in range(self.width // 2 if self.kind == RANKED else self.width)]

    @property
    def texts(self) -> list[bool]:
        """Say of each column whether it holds names of classes."""
        return [self.kind == RANKED and place % 2 == 0 for place in range(len(self.columns))]


@dataclass(frozen=True)
class Rows:
    """Rows of a table.

    Attributes:
        ids: of the inputs.
        values: of each answer float32 ``(rows, width)``. Numbers of classes are whole.
    """

    ids: list[str]
    values: tuple[Values, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> "Rows":
        """Give the rows from ``start`` to ``stop``."""
        return Rows(self.ids[start:stop], tuple(own[start:stop] for own in self.values))


@dataclass(frozen=True)
class Table:
    """What an output holds.

    Attributes:
        answers: one an adapter.
        of: ``images``, or the identity of the cache whose samples the ids are.
    """

    answers: tuple[Answer, ...]
    of: str = IMAGES

    @property
    def embeds(self) -> bool:
        """Whether it holds feature vectors."""
        return all(answer.kind == FEATURES for answer in self.answers)

    @property
    def maps(self) -> bool:
        """Whether it holds maps, perhaps beside other answers."""
        return any(answer.kind == MAPS for answer in self.answers)

    @property
    def columns(self) -> list[str]:
        """Names of the columns of a flat table."""
        return ["id", *(name for answer in self.answers for name in answer.columns)]

    def described(self) -> dict[str, Any]:
        """Give as JSON what two outputs must agree in to be one."""
        own = [{name: list(v) if isinstance(v, tuple) else v for name, v in asdict(a).items()} for a in self.answers]
        for answer in own:
            if not answer["shape"]:  # outputs of earlier versions do not say it
                del answer["shape"]
        return {"of": self.of, "adapters": own}

    def cells(self, rows: Rows) -> Iterator[list[str | np.float32]]:
        """Give the cells of each row: the id, class names and numbers, in the order of the columns."""
        for place, name in enumerate(rows.ids):
            line: list[str | np.float32] = [name]
            for answer, values in zip(self.answers, rows.values, strict=True):
                own = values[place]
                if answer.kind == RANKED:
                    for number, probability in own.reshape(-1, 2):
                        line += [answer.classes[int(number)], probability]
                elif answer.kind == LABELS:
                    for probability, predicted in own.reshape(-1, 2):
                        line += [probability, f"{predicted:.0f}"]
                else:
                    line.extend(own)
            yield line

    def from_cells(self, lines: list[list[str]]) -> Rows:
        """Make rows of text cells, as :meth:`cells` gives them.

        Raises:
            ValueError: for another count of cells, an unknown class, or what is no number.
        """
        if wrong := next((line for line in lines if len(line) != len(self.columns)), None):
            raise ValueError(f"it has a row of {len(wrong)} cells in place of {len(self.columns)}")
        values, at = [], 1
        for answer in self.answers:
            numbers = {name: number for number, name in enumerate(answer.classes)}
            cut = [line[at : at + answer.width] for line in lines]
            own = [
                [_number(c, numbers if t else None) for c, t in zip(line, answer.texts, strict=True)] for line in cut
            ]
            values.append(np.array(own, dtype=np.float32).reshape(len(lines), answer.width))
            at += answer.width
        return Rows([line[0] for line in lines], tuple(values))

    def entry(self, rows: Rows, place: int) -> dict[str, Any]:
        """Give a row as a dictionary: ``id``, and by adapter a list of ``{"class", "probability"}``, or of numbers.

        Of labels, ``predicted`` says whether each is. A feature vector stays an array, and so does a map.
        """
        found: dict[str, Any] = {}
        for answer, values in zip(self.answers, rows.values, strict=True):
            own = values[place]
            if answer.kind == RANKED:
                pairs = own.reshape(-1, 2)
                found[answer.name] = [
                    {"class": answer.classes[int(number)], "probability": shortest(share)} for number, share in pairs
                ]
            elif answer.kind == LABELS:
                found[answer.name] = [
                    {"class": name, "probability": shortest(share), "predicted": bool(predicted)}
                    for name, (share, predicted) in zip(answer.classes, own.reshape(-1, 2), strict=True)
                ]
            else:
                whole = own.reshape(answer.shape) if answer.kind == MAPS else own
                found[answer.name] = [shortest(number) for number in own] if answer.kind == NUMBERS else whole
        return {"id": rows.ids[place], ("features" if self.embeds else "predictions"): found}


def shortest(number: np.float32) -> float:
    """Give the number of the fewest digits that is this one in float32."""
    return float(str(number))


def regrouped(parts: Iterable[Rows], size: int) -> Iterator[Rows]:
    """Put rows together anew, ``size`` at a time: what is written does not depend on the batches it came in."""
    waiting: list[Rows] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count >= size:
            whole = joined(waiting)
            for start in range(0, count - count % size, size):
                yield whole.part(start, start + size)
            waiting = [whole.part(count - count % size, count)]
            count %= size
    if count:
        yield joined(waiting)


def first(parts: Iterable[Rows], count: int) -> Iterator[Rows]:
    """Give the first ``count`` rows.

    Raises:
        ValueError: if there are fewer.
    """
    left = count
    if left:
        for part in parts:
            yield part.part(0, left)
            left -= min(left, len(part))
            if not left:
                return
        raise ValueError(f"it has {count - left} rows in place of {count}")


def joined(parts: list[Rows]) -> Rows:
    """Put rows together."""
    ids = [name for part in parts for name in part.ids]
    return Rows(ids, tuple(np.concatenate(own) for own in zip(*(part.values for part in parts), strict=True)))


def plain(text: str) -> str:
    """Give text that every format can hold: bytes of a file name that are no UTF-8 are escaped.

    Backslashes of names that have such bytes, or seem to have escaped ones, are doubled: no two names look the same.
    """
    escaped = text.encode("utf-8", "backslashreplace").decode()
    if escaped != text or "\\udc" in text:
        return text.replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode()
    return text


def _number(cell: str, classes: dict[str, int] | None) -> float:
    if classes is None:
        return float(np.float32(cell))
    if cell not in classes:
        raise ValueError(f"it names {cell!r}, which is no class")
    return classes[cell]

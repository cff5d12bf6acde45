"""A folder of PNG masks: a file an image, whose pixels number the classes; its palette only colours them.

``index.csv`` names the id and the file of each image, ``classes.txt`` the classes, a line each, from 0.
"""

import csv
from collections.abc import Iterator
from itertools import chain, islice
from itertools import count as counted
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from losa_cache.apply.predict.formats.base import FolderFormat
from losa_cache.apply.predict.table import MAPS, Rows, Table
from losa_cache.outside import open_file

INDEX, CLASSES, TOGETHER = "index.csv", "classes.txt", 16
HEAD = ["id", "file"]


class PngFolder(FolderFormat):
    """Masks of one adapter, in folders as their images are."""

    suffix = "/"
    maps = True

    def refuse(self, table: Table) -> str:
        """Hold the masks of one adapter."""
        if len(table.answers) == 1 and table.answers[0].kind == MAPS and table.answers[0].classes:
            return ""
        return "a folder holds the masks of one adapter: choose another suffix"

    def read(self, path: Path, table: Table) -> Iterator[Rows]:
        """Read the rows back; each file must be a mask of the adapter's size."""
        (answer,) = table.answers
        if not (path / INDEX).is_file():
            raise ValueError(f"it has no {INDEX}")
        with open(path / INDEX, encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            if next(lines, None) != HEAD:
                raise ValueError(f"{INDEX} does not begin with {','.join(HEAD)}")
            while part := list(islice(lines, TOGETHER)):
                masks = np.stack([_read(path, name, answer.shape) for _, name in part])
                yield Rows([own for own, _ in part], (masks.reshape(len(part), -1).astype(np.float32),))

    def write(self, path: Path, table: Table, rows: Iterator[Rows], count: int) -> None:
        """Write a new folder beside the old one, and put it in its place."""
        from losa_cache.report.sheet_chart import colours

        (answer,) = table.answers
        palette, taken = colours(len(answer.classes)).ravel().tolist(), {INDEX, CLASSES}
        with self.replacing(path) as new:
            new.mkdir()
            (new / CLASSES).write_text("".join(f"{name}\n" for name in answer.classes), "utf-8")
            with open(new / INDEX, "w", encoding="utf-8", newline="") as file:
                index = csv.writer(file, lineterminator="\r\n")
                index.writerow(HEAD)
                for part in rows:
                    for name, values in zip(part.ids, part.values[0], strict=True):
                        place = _place(name, taken)
                        taken.add(place)
                        image = Image.fromarray(values.reshape(answer.shape).astype(np.uint8))
                        image.putpalette(palette)  # from then on it is one of indices
                        (new / place).parent.mkdir(parents=True, exist_ok=True)
                        image.save(new / place)
                        index.writerow([name, place])


def _place(name: str, taken: set[str]) -> str:
    """Name the file of an image: as the image, ending in .png; below the folder, whatever the id is."""
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", "//", "..")] or ["image"]
    whole = PurePosixPath(*parts)
    more = chain([""], (f"-{number}" for number in counted(2)))  # where images differ in their suffix alone
    places = chain([whole.with_suffix(".png")], (whole.with_name(f"{whole.name}{own}.png") for own in more))
    return next(place for place in map(str, places) if place not in taken)


def _read(path: Path, name: str, shape: tuple[int, ...]) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
        raise ValueError(f"{INDEX} names {name!r}, which is not below the folder")
    with open_file(path / name) as file, Image.open(file, formats=("PNG",)) as image:
        values = np.asarray(image)
    if image.mode != "P" or values.shape != shape:
        raise ValueError(f"{name} is no mask of {shape} pixels")
    return values


FORMAT = PngFolder()

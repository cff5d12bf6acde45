"""Targets from a folder of masks or depth maps, one picture for each image."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.data.label_files import read_names
from losa_cache.data.left import Left
from losa_cache.data.scan import HERE, scan
from losa_cache.data.sources.folder import split_in
from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError
from losa_cache.targets.check import DEPTH_NAMES, require_names
from losa_cache.targets.pictures import READERS, SUFFIXES
from losa_cache.targets.source import Progress, Source
from losa_cache.targets.target_set import DEPTH, DTYPES, IGNORED, MASK

if TYPE_CHECKING:  # it loads torch
    from losa_cache.targets.frame import Frames

CLASSES = "classes.txt"
"""File of a folder of masks that names its classes, one a line, in the order of their numbers."""
THREADS = 8
EVERY = 50  # samples between two reports
PLURAL = {MASK: "masks", DEPTH: "depth maps"}
TASKS = {MASK: "segmentation", DEPTH: "depth"}


@dataclass(frozen=True)
class Pictures(Source):
    """Masks or depth maps of a folder; their ids are their paths.

    Attributes:
        names: of the classes; ``None``: the folder does not say.
        ignored: a value of masks that stands for no class, besides 255.
    """

    names: list[str] | None
    ignored: int | None

    @property
    def framed(self) -> bool:
        """They follow the transform of their images."""
        return True

    def values(
        self, places: NDArray[np.int64], frames: "Frames | None", progress: Progress
    ) -> tuple[list[str], NDArray[Any]]:
        """Read every picture and send it through the transform of its image: resized by the nearest, and cropped."""
        assert frames is not None
        fill = np.array(np.nan if self.kind == DEPTH else IGNORED, dtype=DTYPES[self.kind])
        values = np.full((len(places), *frames.spec.size[1:]), fill)
        wanted = np.flatnonzero(places >= 0)
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "targets") as threads:

            def read(sample: int) -> None:
                values[sample] = self._read(places[sample], sample, frames, fill)

            for done, _ in enumerate(threads.map(read, wanted.tolist()), 1):
                if not done % EVERY or done == len(wanted):
                    progress(done / len(wanted))
        return self._named(values), values

    def stored(self, place: int) -> NDArray[Any]:
        """Decode the picture of a place among the ids.

        Raises:
            Exception: whatever a decoder raises.
        """
        return READERS[self.kind](self.path / self.ids[place])

    def _read(self, place: int, sample: int, frames: "Frames", fill: NDArray[Any]) -> NDArray[Any]:
        name, image = self.ids[place], frames.samples.ids[sample]
        try:
            stored = self.stored(place)
        except Exception as error:  # decoders raise anything
            raise self._bad(name, "cannot be read", error) from error
        if self.kind == MASK:
            self._require_known(name, stored)
            stored[stored == self.ignored] = IGNORED
        try:
            (width, height), turn = frames.stored(sample)
        except Exception as error:
            raise self._bad(image, "is an image that cannot be read", error) from error
        if stored.shape != (height, width):
            upright = (width, height) if turn is not None else None
            if stored.shape != upright:
                raise UserError(
                    f"{name!r} of {str(self.path)!r} has {stored.shape[1]} x {stored.shape[0]} pixels, and its image "
                    f"{image!r} {width} x {height}: a {self.kind} has a value for each pixel of its image."
                )
            (width, height), turn = (height, width), None  # it was turned already
        found: NDArray[Any] = np.append(fill, stored.ravel())[frames.pixels((width, height), turn)]
        return found

    def _bad(self, name: str, what: str, error: Exception) -> UserError:
        return UserError(f"{name!r} of {str(self.path)!r} {what} ({error}): mend it.")

    def _require_known(self, name: str, stored: NDArray[np.uint8]) -> None:
        if self.names is None:
            return
        known = np.zeros(IGNORED + 1, dtype=bool)
        known[: len(self.names)] = known[IGNORED] = True
        if self.ignored is not None:
            known[self.ignored] = True
        if not known[stored].all():
            value = int(stored[~known[stored]][0])
            raise UserError(
                f"{name!r} of {str(self.path)!r} holds the value {value}, and {CLASSES} names {len(self.names)} "
                f"classes, from 0: name its class there, or pass --ignore {value} if it stands for none."
            )

    def _named(self, values: NDArray[Any]) -> list[str]:
        if self.kind == DEPTH:
            return DEPTH_NAMES
        if self.names is not None:
            return self.names
        known = values[values != IGNORED]
        if not known.size or not known.max():
            raise UserError(
                f"the masks of {str(self.path)!r} hold no class but 0 (255 and --ignore are none): number the classes "
                f"from 0, or name them in {CLASSES}."
            )
        return [str(number) for number in range(int(known.max()) + 1)]


def read_folder(path: Path, *, kind: str, ignored: int | None) -> Pictures:
    """List the masks or depth maps of a folder; none is read yet.

    Args:
        path: of the folder; its pictures may lie in folders below it.
        kind: of the target set, ``mask`` or ``depth``.
        ignored: a value of masks that stands for no class, besides 255.

    Raises:
        UserError: for a folder without such pictures, one that cannot be read, or class names that cannot be.
    """
    suffixes = SUFFIXES[kind]
    try:
        paths = scan(path, [HERE], suffixes, Left()).paths
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror}): name a folder.") from error
    if not paths:
        raise _none(path, kind)
    return Pictures(path, kind, paths, _names(path, paths) if kind == MASK else None, ignored)


def _none(path: Path, kind: str) -> UserError:
    """Say that a folder has no such pictures, and name the task that its files are for, if there is one."""
    lacking = f"{str(path)!r} holds no {PLURAL[kind]} ({', '.join(SUFFIXES[kind])})"
    for other in SUFFIXES.keys() - {kind}:
        if others := scan(path, [HERE], SUFFIXES[other], Left()).paths:
            return UserError(
                f"{lacking}, but {len(others)} files that may be {PLURAL[other]}, such as {others[0]!r}: pass "
                f"--task {TASKS[other]}."
            )
    return UserError(f"{lacking}: name the folder that does.")


def _names(path: Path, pictures: Sequence[str]) -> list[str] | None:
    """Read the names of the classes, from the folder or those below it that hold pictures; ``None``: none has them.

    The folder of a split (``masks/train``) may leave them to the folder that it lies in.

    Raises:
        UserError: for files that cannot name classes, or do not name the same ones.
    """
    folders = {parent for name in pictures for parent in PurePosixPath(name).parents}
    files = [file for folder in sorted(folders) if (file := path / folder / CLASSES).exists()]
    whole = path.resolve()
    if not files and split_in(whole.name) and (above := whole.parent / CLASSES).exists():
        files = [above]
    if not files:
        return None
    first, *others = ((file, _read_names(file)) for file in files)
    for file, names in others:
        if names != first[1]:
            raise UserError(
                f"{str(first[0])!r} and {str(file)!r} name different classes: one file names those of all masks, so "
                f"write it to {str(path / CLASSES)!r} alone."
            )
    return first[1]


def _read_names(file: Path) -> list[str]:
    try:
        names = read_names(file)
        require_names(MASK, names)
    except (UnreadableError, ValueError) as error:
        raise UserError(f"{str(file)!r} cannot name the classes ({error}): write a name in each line.") from error
    return names

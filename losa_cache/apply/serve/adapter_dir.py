"""The folder from which requests may add adapters, and nothing beside it."""

import os
from pathlib import Path

from losa_cache.apply.serve.refused import RefusedError
from losa_cache.errors import UserError
from losa_cache.folders import settled_path
from losa_cache.sidenet.adapter_folder import find_files


def require_folder(path: str) -> Path:
    """Settle the path of a folder.

    Raises:
        UserError: if there is none.
    """
    settled = settled_path(path)
    if not settled.is_dir():
        raise UserError(f"adapter-dir is {path!r}, where no folder is: name one that holds adapters.")
    return settled


class AdapterDir:
    """A folder of adapters.

    Args:
        path: of it.

    Raises:
        UserError: if there is no such folder.
    """

    def __init__(self, path: str) -> None:
        self._root = require_folder(path)

    def find(self, given: str) -> Path:
        """Find an adapter by its path below the folder.

        Links are followed; neither they nor ``..`` nor a path from the root lead out.

        Raises:
            RefusedError: if there is none. What is elsewhere is as good as not there.
        """
        none = RefusedError(
            404, f"there is no adapter {given!r} in the server's folder of adapters: name a folder in it."
        )
        try:
            path = (self._root / given).resolve()
            self._require_inside(path, none)
            files = find_files(path)
            for own in (files.folder, files.config, files.tensors):
                self._require_inside(own.resolve(strict=True), none)
        except (OSError, ValueError, RuntimeError) as error:  # not there; a zero byte; links in a circle
            raise none from error
        if not files.stands_alone:
            raise RefusedError(
                422, f"adapter {given!r} is of an earlier version and does not stand alone: train or save it anew."
            )
        return path

    def hide(self, sentence: str) -> str:
        """Take the folder's own place out of a sentence for clients."""
        return sentence.replace(f"{self._root}{os.sep}", "")

    def _require_inside(self, path: Path, none: RefusedError) -> None:
        if not path.is_relative_to(self._root):
            raise none

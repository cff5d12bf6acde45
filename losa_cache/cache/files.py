"""Durable small steps on a file system: a name appears only with its whole content behind it."""

import json
import os
from pathlib import Path
from typing import Any


def sync_folder(folder: Path) -> None:
    """Make renames within a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make every file and name below a folder durable."""
    for here, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(here, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(here))


def publish(partial: Path, final: Path) -> None:
    """Rename a file that is already synced to its final name, durably."""
    os.replace(partial, final)
    sync_folder(final.parent)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all, durably."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    publish(partial, path)

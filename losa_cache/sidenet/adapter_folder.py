"""Where an adapter lies and what is measured of it: all that must be known before torch is imported.

A finished run holds a folder ``adapter``, which stands alone: tensors, config, metrics and a model card. Runs of
earlier versions hold two files in PEFT's names, which are no PEFT adapter.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from losa_cache.errors import UserError
from losa_cache.files import without_nan, write_json
from losa_cache.outside import UnreadableError, fit, read_json

FOLDER = "adapter"
"""The folder of a run that holds its adapter."""
TENSORS, CONFIG, METRICS, CARD = "adapter.safetensors", "config.json", "metrics.json", "README.md"
HUB = "hub:"
"""In front of owner/name: an adapter on the Hugging Face hub."""
FORMAT, VERSION = "losa-cache adapter", 1
_EARLIER = ("adapter_model.safetensors", "adapter_config.json")


class _Entry(Struct):
    """What every entry of the metrics has; the figures are those of the task."""

    on: str
    split: str
    samples: Annotated[int, Meta(ge=0)]


@dataclass(frozen=True)
class AdapterFiles:
    """The files of an adapter.

    Attributes:
        folder: that holds them.
        tensors, config: their paths.
        stands_alone: whether it has the frozen tail, too, as adapters of earlier versions have not.
    """

    folder: Path
    tensors: Path
    config: Path
    stands_alone: bool


def new_files(run: Path) -> AdapterFiles:
    """Name the files that a run's adapter gets."""
    folder = run / FOLDER
    return AdapterFiles(folder, folder / TENSORS, folder / CONFIG, stands_alone=True)


def has_adapter(path: Path) -> bool:
    """Tell whether a finished run, or an adapter by itself, lies at a path."""
    return find_files(path).config.exists()


def find_files(path: Path) -> AdapterFiles:
    """Find the files of an adapter.

    Args:
        path: a run, its folder ``adapter``, or a copy of that. Nothing needs to be there: then the files of a new run
            are named.
    """
    tensors, config = (path / name for name in _EARLIER)
    if config.exists() and not (path / FOLDER).exists():
        return AdapterFiles(path, tensors, config, stands_alone=False)
    if (path / TENSORS).exists() or _is_named(path):
        return AdapterFiles(path, path / TENSORS, path / CONFIG, stands_alone=True)
    return new_files(path)


def local_folder(path: str | Path) -> Path:
    """Give the folder of an adapter; one on the hub is fetched first.

    Raises:
        UserError: if it cannot be fetched.
    """
    if not str(path).startswith(HUB):
        return Path(path)
    from losa_cache.apply.hub import fetch_adapter

    return fetch_adapter(str(path))


def _is_named(path: Path) -> bool:
    """Tell whether the config in a folder is an adapter's: a run has one of this name, too."""
    try:
        return read_json(path / CONFIG, dict[str, Any]).get("format") == FORMAT
    except UnreadableError:
        return False


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read what was measured of an adapter: ``on``, ``split``, ``samples`` and metrics of its task, an entry a split.

    Raises:
        UserError: if the file was altered.
    """
    file = find_files(path).folder / METRICS
    if not file.exists():
        return []
    try:
        found = read_json(file, list[dict[str, Any]])
        fit(found, list[_Entry])
        return found
    except UnreadableError as error:
        raise UserError(f"{str(file)!r} cannot be read: {error}. Delete it, and evaluate again.") from error


def add_metrics(path: Path, entry: dict[str, Any]) -> None:
    """Write down what was measured of an adapter, in place of what was measured on the same split before.

    Raises:
        OSError: if it cannot be written.
        UserError: as of :func:`read_metrics`.
    """
    others = [known for known in read_metrics(path) if known.get("split") != entry["split"]]
    write_json(find_files(path).folder / METRICS, [*others, without_nan(entry)])

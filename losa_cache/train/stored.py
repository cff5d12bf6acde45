"""What a run directory stores of its options, read back. It imports no torch: ``--config RUN`` reads it, too."""

import hashlib
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from msgspec import Struct

from losa_cache.errors import UserError
from losa_cache.files import without_seal
from losa_cache.options import options_of
from losa_cache.outside import UnreadableError, fit, parse_json, read_file
from losa_cache.train.config import EARLIER, TrainConfig
from losa_cache.train.online_config import OnlineConfig
from losa_cache.train.sample_files import MOST_BYTES

# Files that options name. The run keeps a copy, since it is resumed and evaluated when theirs may have changed or gone.
KEPT_FILES = {
    "sampling": "sampling.csv",
    "val_ids": "val_ids.txt",
    "class_weights": "class_weights.csv",
    "group_by": "group_by.csv",
}
CONFIG = "config.json"
ORIGIN = ("cache", "online", "fields")
LATER = ("targets",)  # runs of earlier versions do not say


class _Origin(Struct):
    """What a run learns from, as its config has it."""

    cache: str | None
    online: OnlineConfig | None
    fields: dict[str, Any]
    targets: dict[str, str] | None = None


def read_run(folder: Path) -> tuple[TrainConfig, dict[str, Any], bool]:
    """Read the options of a run, what it learns from, and whether its config is sealed.

    Args:
        folder: the run directory.

    Returns:
        the options; ``cache`` (path), ``online`` (options), ``fields`` (identity) and ``targets`` (name, kind and
        fingerprint; ``None``: the run does not say) of what it trains on; and whether the config has a seal, which runs
        of earlier versions lack.

    Raises:
        UserError: if this is no run directory, or one that was altered.
    """
    path = folder / CONFIG
    try:
        raw = read_file(path)
    except UnreadableError as error:
        raise UserError(f"{str(folder)!r} is no run directory ({CONFIG}: {error}).") from error
    try:
        content = parse_json(raw, dict[str, Any])
        config, origin = _fitted(content)
        sealed = "seal" in content
        if sealed:
            without_seal(content)
    except (UnreadableError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} is not as the run was begun: {error}. A run stays what it was: put back the original, "
            "or train anew."
        ) from error
    for option, digest in content.get("files", {}).items():
        _require_kept(folder / KEPT_FILES[option], digest)
    kept: dict[str, Any] = {
        name: str(folder / file) for name, file in KEPT_FILES.items() if getattr(config, name) == file
    }
    return replace(config, **kept), origin, sealed


def options_of_run(path: Path) -> dict[str, Any] | None:
    """Give the options of ``train`` that repeat a run, by their names in files.

    Args:
        path: a run directory or its config; ``None`` for any other file.

    Raises:
        UserError: as of :func:`read_run`.
    """
    folder = path.parent if path.name == CONFIG else path
    if not folder.is_dir():
        return None
    config, origin, _ = read_run(folder)
    found = asdict(config) | {"cache": origin["cache"]}
    if config.val_ids is not None:
        del found["val_fraction"]  # it says nothing beside them
    if origin["online"] is not None:
        online = OnlineConfig.from_json(origin["online"])
        found |= {own.key: getattr(online, own.name) for own in options_of(OnlineConfig)}
        found |= {"online": True} if online.share == 1 else {"mixed": online.share}
    return found


def digest_of(content: bytes) -> str:
    """Give the digest that names a file's content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _require_kept(path: Path, digest: str) -> None:
    try:
        if digest_of(read_file(path, at_most=MOST_BYTES)) == digest:
            return
        reason = "it was altered since the run began"
    except UnreadableError as error:
        reason = str(error)
    raise UserError(f"{str(path)!r} says which samples the run takes, and {reason}: put back the original.")


def _fitted(content: dict[str, Any]) -> tuple[TrainConfig, dict[str, Any]]:
    """Hold a config's content to what it must be, and give the options and the origin.

    Raises:
        UnreadableError: if it is something else.
    """
    if missing := {"train", *ORIGIN} - content.keys():
        raise UnreadableError(f"it lacks {', '.join(sorted(missing))}")
    known = {
        "": {"train", *ORIGIN, *LATER, "files", "seal"},
        "train.": _names(TrainConfig),
        "online.": _names(OnlineConfig),
    }
    parts = {"": content, "train.": content["train"], "online.": content["online"]}
    for where, part in parts.items():
        if isinstance(part, dict) and (surprises := part.keys() - known[where]):
            raise UnreadableError(f"{where}{min(surprises)} is unknown")
    try:
        options = fit(content["train"], dict[str, Any])
        config = fit(EARLIER | options, TrainConfig)
        origin = {name: content[name] for name in ORIGIN} | {name: content.get(name) for name in LATER}
        fit(origin, _Origin)
    except UserError as error:
        raise UnreadableError(str(error).removesuffix(".")) from error
    if wrong := fit(content.get("files", {}), dict[str, str]).keys() - KEPT_FILES.keys():
        raise UnreadableError(f"files.{min(wrong)} is unknown")
    return config, origin


def _names(shape: type[TrainConfig] | type[OnlineConfig]) -> set[str]:
    return {field.name for field in fields(shape)}

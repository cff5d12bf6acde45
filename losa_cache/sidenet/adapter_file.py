"""Adapter files: what training leaves behind, in PEFT's names: a safetensors file and a JSON config."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from losa_cache.errors import UserError
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.tail import FrozenTail

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def save_adapter(folder: Path, adapter: Adapter, config: dict[str, Any]) -> None:
    """Write the trained tensors and the config (arguments of :class:`Adapter`, and where it was trained)."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in adapter.trained_state().items()}
    for name, write in (
        (TENSORS, lambda path: save_file(tensors, path)),
        (CONFIG, lambda path: path.write_text(json.dumps(config, indent=2))),
    ):
        partial = folder / (name + ".partial")
        write(partial)
        partial.replace(folder / name)


def load_adapter_config(folder: Path) -> dict[str, Any]:
    """Read an adapter's config.

    Raises:
        UserError: if the folder holds no adapter.
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        if missing := {"adapter", "tap", "layers", "start", "classes", "cache"} - config.keys():
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError) as error:
        raise UserError(f"{str(folder)!r} holds no adapter ({CONFIG}: {error}).") from error
    return config


def load_adapter(folder: Path, config: dict[str, Any], tail: FrozenTail) -> Adapter:
    """Rebuild a trained adapter around a frozen tail.

    Raises:
        UserError: if the tensors are missing or not those of the config.
    """
    try:
        adapter = Adapter(**config["adapter"], tail=tail)
        tensors = load_file(folder / TENSORS)
        if tensors.keys() != adapter.trained_state().keys():
            raise RuntimeError("its tensors are not those of its config")
        adapter.load_state_dict(tensors, strict=False)
    except (OSError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"adapter {str(folder / TENSORS)!r} cannot be loaded ({error}).") from error
    return adapter

"""Runs as earlier versions wrote them."""

import hashlib
import json
from pathlib import Path

from safetensors.torch import load_file, save

from losa_cache.files import with_seal


def as_earlier(run: Path) -> None:
    """Rewrite a finished run: its adapter in PEFT's names, beside the run's own files, and without the frozen tail."""
    folder = run / "adapter"
    tensors = load_file(folder / "adapter.safetensors")
    raw = save({name: value for name, value in tensors.items() if not name.startswith("tail.")})
    config = json.loads((folder / "config.json").read_text())
    for name in ("format", "version", "tail", "task", "seal"):
        del config[name]
    (run / "adapter_model.safetensors").write_bytes(raw)
    config["sha256"] = hashlib.sha256(raw).hexdigest()
    (run / "adapter_config.json").write_text(json.dumps(with_seal(config), indent=2))
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()

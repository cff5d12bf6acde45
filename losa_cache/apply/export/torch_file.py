"""A file of ``torch.export``: ``torch.export.load(path).module()`` runs it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from losa_cache.apply.export.graph import Exportable

ABOUT = "losa_cache.json"
"""The extra file that says what the program is."""


def require() -> None:
    """Need nothing but torch."""


def write(program: torch.export.ExportedProgram, exported: Exportable, path: Path, about: Mapping[str, Any]) -> None:
    """Write a traced program, and what it says of itself."""
    program.example_inputs = None  # they would be kept in the file
    torch.export.save(program, path, extra_files={ABOUT: json.dumps(about)})


def run(path: Path, exported: Exportable, batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Load the file and run it on batches."""
    model = torch.export.load(path).module()
    with torch.inference_mode():
        return [model(*inputs) for inputs in batches]

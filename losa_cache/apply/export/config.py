"""The options of ``export``."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from losa_cache.errors import UserError
from losa_cache.folders import given_path, require_writable
from losa_cache.options import Option

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
"""The formats, and how the names of their files end."""


@dataclass(frozen=True)
class ExportConfig:
    """What is exported, and to where.

    Attributes:
        out: file that is written; nothing may be there.
        format: ``onnx``: for ONNX Runtime and what else reads ONNX; ``torch``: what ``torch.export.load`` reads.
        side_only: leave the backbone out: the file takes block outputs, which a backbone has computed elsewhere.
        weights: of the backbone, as of ``losa_cache.apply.open.backbone_for``.

    Raises:
        UserError: for a format that is unknown, or a file that cannot be written.
    """

    out: Annotated[str, Option("File to write, which ends in .onnx or .pt2.", path=True)]
    format: Annotated[str, Option("onnx, or torch: a .pt2 file of torch.export.")] = "onnx"
    side_only: Annotated[
        bool, Option("Export the adapter without its backbone: it takes block outputs in place of pixels.")
    ] = False
    weights: Annotated[
        str | None,
        Option("File of the backbone's weights; default: those of your caches, or timm's download.", path=True),
    ] = None

    def __post_init__(self) -> None:
        if self.format not in SUFFIXES:
            raise UserError(f"unknown format {self.format!r}: choose one of {', '.join(SUFFIXES)}.")
        if self.side_only and self.weights is not None:
            raise UserError("--side-only leaves the backbone out: leave out --weights.")
        if self.path.suffix != SUFFIXES[self.format]:
            raise UserError(
                f"out is {self.out!r}: name a file that ends in {SUFFIXES[self.format]}, as those of format "
                f"{self.format} do, or choose another --format."
            )
        if os.path.lexists(self.path):
            raise UserError(f"{self.out!r} exists: choose another --out.")
        require_writable(self.path.absolute().parent)

    @property
    def path(self) -> Path:
        """The file, with the home folder written out."""
        return given_path(self.out)

"""One of several processes of an extraction, which ``losa_cache.extract.processes`` starts: ``python -m`` this module.

Its argument is a JSON object of ``options``, fields of :class:`ExtractConfig`, ``shard_bytes``, and among how many
``processes`` the cores are divided. It tells the fields of its :class:`Meter` while it works, and ``cache`` at the end.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from time import perf_counter
from typing import Any

from losa_cache.__main__ import command
from losa_cache.children import Tell, begin_child
from losa_cache.extract.meter import Meter

TELL_SECONDS = 0.2


class TellingMeter(Meter):
    """A meter whose figures are told."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._tell, self._told = tell, 0.0

    def start(self, total: int) -> None:
        """Start, and say so."""
        super().start(total)
        self.tell()

    def update(self) -> None:
        """Tell the figures if they were not told just now."""
        super().update()
        if perf_counter() - self._told >= TELL_SECONDS:
            self.tell()

    def tell(self) -> None:
        """Tell the figures."""
        self._told = perf_counter()
        self._tell({name: getattr(self, name) for name in FIGURES})


FIGURES = tuple(own.name for own in fields(Meter) if not own.name.startswith("_"))


def main() -> None:
    """Extract what the argument says."""
    command(lambda: _extract(json.loads(sys.argv[1])))


def _extract(wanted: Mapping[str, Any]) -> None:
    tell = begin_child()
    import torch

    if "OMP_NUM_THREADS" not in os.environ:  # which says it of each process
        torch.set_num_threads(max(1, torch.get_num_threads() // wanted["processes"]))
    from losa_cache.extract.config import ExtractConfig
    from losa_cache.extract.extract import extract

    meter = TellingMeter(tell)
    cache = extract(config=ExtractConfig(**wanted["options"]), shard_bytes=wanted["shard_bytes"], meter=meter)
    meter.tell()
    tell({"cache": str(cache.path)})


if __name__ == "__main__":
    main()

"""What options say of a data set, as every kind of data set is given it."""

from dataclasses import dataclass, field
from pathlib import Path

from losa_cache.data.columns import Columns
from losa_cache.data.pixel_rules import AS_DECLARED, PixelRules


@dataclass(frozen=True)
class Request:
    """What is asked of a data set.

    Attributes:
        name: of the data set: what stands behind the prefix (``labels.csv`` of ``table:labels.csv``), or the whole.
        split: ``train``, ``val``, ``test``, ...
        folder: that holds the data set; ``None``: it needs none, or ``name`` says it.
        home: where data sets that are downloaded are kept.
        columns: of a table, to take.
        pixels: how values that are not 8-bit RGB become pixels.
    """

    name: str
    split: str
    folder: Path | None = None
    home: Path | None = None
    columns: Columns = field(default_factory=Columns)
    pixels: PixelRules = AS_DECLARED

    @property
    def root(self) -> Path:
        """The folder of the data set; one that options do not name is the data set's name."""
        return Path(self.name) if self.folder is None else self.folder

"""The options of ``losa-cache data``: the data set as ``extract`` names it, and how far each image is looked at."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from losa_cache.data.columns import parse_columns
from losa_cache.data.names import require_columns, require_data_set, require_split
from losa_cache.errors import UserError
from losa_cache.inputs_config import COLUMNS, DATA_DIR, DATASET, SPLIT
from losa_cache.options import Option

if TYPE_CHECKING:
    from losa_cache.data.samples import Samples

NAMES, HEADERS, PIXELS = DEPTHS = ("names", "headers", "pixels")


@dataclass(frozen=True)
class SurveyConfig:
    """A data set, and how far its images are looked at.

    Attributes:
        dataset: a name (``load_samples``) or loaded samples, for which the next three are not used.
        split, data_dir, columns: as of ``load_samples``.
        look: ``names``: no image is opened; ``headers``: sizes, modes and duplicates; ``pixels``: every image is
            decoded, too.

    Raises:
        UserError: for options that cannot work, as far as that can be told without opening anything.
    """

    dataset: Annotated["str | Samples", Option(DATASET, path=True)]
    split: Annotated[str, Option(SPLIT)] = "train"
    data_dir: Annotated[str | None, Option(DATA_DIR, path=True)] = None
    columns: Annotated[str | None, Option(COLUMNS)] = None
    look: Annotated[
        str,
        Option(
            "How far images are looked at: names (none is opened), headers (sizes, modes and duplicates) or pixels "
            "(every image is decoded, which finds all that extract would stop at)."
        ),
    ] = HEADERS

    def __post_init__(self) -> None:
        if isinstance(self.dataset, str):
            require_data_set(self.dataset, self.data_dir)
            require_split(self.dataset, self.split)
            require_columns(self.dataset, self.columns)
            parse_columns(self.columns)
        if self.look not in DEPTHS:
            raise UserError(f"look is {self.look!r}: choose one of {', '.join(DEPTHS)}.")

"""The options of ``losa-cache data``: the data set as ``extract`` names it, and how far each image is looked at."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from losa_cache.data.data_config import COLUMNS, DATA_DIR, DATASET, SPLIT, PixelConfig, of_data, require_data
from losa_cache.errors import UserError
from losa_cache.options import Option

if TYPE_CHECKING:
    from losa_cache.data.samples import Samples

NAMES, HEADERS, PIXELS = DEPTHS = ("names", "headers", "pixels")


@dataclass(frozen=True)
class SurveyConfig(PixelConfig):
    """A data set, and how far its images are looked at.

    Attributes:
        dataset: a name (``load_samples``) or loaded samples, for which only ``look`` is used.
        look: ``names``: no image is opened; ``headers``: sizes, modes and duplicates; ``pixels``: every image is
            decoded, too.

    Raises:
        UserError: for options that cannot work, as far as that can be told without opening anything.
    """

    dataset: Annotated["str | Samples", of_data(DATASET, path=True)]
    split: Annotated[str, of_data(SPLIT)] = "train"
    data_dir: Annotated[str | None, of_data(DATA_DIR, path=True)] = None
    columns: Annotated[str | None, of_data(COLUMNS)] = None
    look: Annotated[
        str,
        Option(
            "How far images are looked at: names (none is opened), headers (sizes, modes and duplicates) or pixels "
            "(every image is decoded, which finds all that extract would stop at)."
        ),
    ] = HEADERS

    def __post_init__(self) -> None:
        require_data(self.dataset, split=self.split, data_dir=self.data_dir, columns=self.columns)
        self.require_pixels()
        if self.look not in DEPTHS:
            raise UserError(f"look is {self.look!r}: choose one of {', '.join(DEPTHS)}.")

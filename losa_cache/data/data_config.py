"""The options that say which images are read, and how they become pixels: of all commands that read a data set."""

from dataclasses import dataclass
from typing import Annotated, Any

from losa_cache.data.columns import parse_columns
from losa_cache.data.names import require_columns, require_data_set, require_split
from losa_cache.data.pixel_rules import PixelRules, parse_rules
from losa_cache.options import Option

PANEL = "Data set"
DATASET = (
    "Data set: digits, folder, imagenet, inaturalist, places365, kinetics400, vtab, a classification set of "
    "torchvision, a table (labels.csv or table:FILE), hf:NAME (or hf:FOLDER), wds:TARS, zip:FILE, or the path of a "
    "folder of class folders."
)
SPLIT = (
    "Split of the data set: train, val or test, as its folders, its column split or its file names say; for vtab: "
    "train800val200, train800, val200 or test."
)
DATA_DIR = "Folder that holds the data set; of a table, the folder that its paths start from."
COLUMNS = (
    "Columns of a table: image=COLUMN,label=COLUMN (also split, group, weight). Every column that is named without a "
    "role becomes a target set of the cache: species, age:numbers, grade:class. Default: columns with common names."
)


def of_data(text: str, **more: Any) -> Option:
    """Describe an option of the data set."""
    return Option(text, panel=PANEL, **more)


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """How files become pixels.

    Attributes:
        range, channels, page, apply_profile: how files that are not 8-bit RGB become pixels
            (``losa_cache.data.pixel_rules.parse_rules``).
    """

    range: Annotated[
        str | None,
        of_data(
            "Values that become black and white in images of more than 8 bits: dtype (what the file declares), min-max "
            "(of each image), percentile (1%..99% of each image), LO%..HI% or LO..HI; default: dtype, and images that "
            "hardly use it are refused."
        ),
    ] = None
    channels: Annotated[
        str | None,
        of_data("Channels to take, counted from 1: three as red, green and blue, such as 4,3,2, or one."),
    ] = None
    page: Annotated[
        int, of_data("Page of a TIFF file, frame of an animation or DICOM file, slice of a NIfTI file, from 1.")
    ] = 1
    apply_profile: Annotated[
        bool,
        of_data("Convert colours to sRGB by the ICC profile of an image. timm and torchvision ignore profiles."),
    ] = False

    @property
    def pixels(self) -> PixelRules:
        """The rules by which files become pixels.

        Raises:
            UserError: for options that cannot work.
        """
        return parse_rules(self.range, self.channels, self.page, self.apply_profile)

    def require_pixels(self) -> None:
        """Check the rules by which files become pixels.

        Raises:
            UserError: for one that cannot work.
        """
        _ = self.pixels


def require_data(dataset: object, *, split: str, data_dir: str | None, columns: str | None) -> None:
    """Check the options that name images, as far as that can be done without opening anything.

    Args:
        dataset: the name of a data set; for loaded samples nothing is checked.
        split, data_dir, columns: as of ``load_samples``.

    Raises:
        UserError: for one that cannot work.
    """
    if isinstance(dataset, str):
        require_data_set(dataset, data_dir)
        require_split(dataset, split)
        require_columns(dataset, columns)
        parse_columns(columns)

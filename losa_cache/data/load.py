"""Data-set names."""

from pathlib import Path
from typing import TYPE_CHECKING

from losa_cache.data.columns import parse_columns
from losa_cache.data.names import kind_of, require_columns, require_data_set
from losa_cache.data.pixel_rules import AS_DECLARED, PixelRules
from losa_cache.data.request import Request
from losa_cache.data.samples import Samples
from losa_cache.data.spec import load_source
from losa_cache.errors import UserError
from losa_cache.folders import find_home, given_path

if TYPE_CHECKING:
    from losa_cache.data.survey_config import SurveyConfig
    from losa_cache.inputs_config import ImageConfig


def load_samples(
    name: str,
    *,
    split: str = "train",
    data_dir: Path | None = None,
    home: Path | None = None,
    columns: str | None = None,
    pixels: PixelRules = AS_DECLARED,
) -> Samples:
    """Load a split of a data set.

    Args:
        name: ``digits``, ``folder``, ``imagenet``, ``inaturalist``, ``kinetics400``, ``places365``, ``vtab``, a
            torchvision classification set (``cifar100``, ``food101``, ...), ``table:``, ``hf:``, ``wds:`` or ``zip:``
            and what is opened, a file such as ``labels.csv``, or the path of a folder of class folders.
        split: ``train``, ``val`` or ``test``, as far as the set has them; of ``vtab`` ``train800val200``, ``train800``,
            ``val200`` or ``test``.
        data_dir: where the files are; for torchvision sets its root (default ``home``), for ``vtab`` the
            folder of one task.
        home: where a set that torchvision downloads is kept, if ``data_dir`` does not say it.
        columns: of a table, to take: ``image=file,label=species,age:numbers``.
        pixels: how values that are not 8-bit RGB become pixels.

    Raises:
        UserError: for an unknown name (with the nearest ones) or files that are not as expected, and for rules
            of pixels if the data set does not hold files of images.
    """
    kind, request = request_of(name, split=split, data_dir=data_dir, home=home, columns=columns, pixels=pixels)
    return load_request(kind, request)


def load_request(kind: str, request: Request) -> Samples:
    """Load what is asked of a kind of data set, and log what is left out of it.

    Raises:
        UserError: as of :func:`open_request`.
    """
    samples = open_request(kind, request)
    samples.left.say()
    return samples


def request_of(
    name: str,
    *,
    split: str,
    data_dir: Path | None,
    home: Path | None,
    columns: str | None,
    pixels: PixelRules = AS_DECLARED,
) -> tuple[str, Request]:
    """Give the kind of a data set, and what is asked of it; arguments as of :func:`load_samples`.

    Raises:
        UserError: for an unknown name, or columns of what is no table.
    """
    require_data_set(name, data_dir)
    require_columns(name, columns)
    kind, rest = kind_of(name)
    return kind, Request(rest, split, data_dir, home, parse_columns(columns), pixels)


def request_of_options(options: "ImageConfig | SurveyConfig") -> tuple[str, Request]:
    """Give the kind of the data set that options name, and what is asked of it, as :func:`request_of` does.

    Raises:
        UserError: as of :func:`request_of`.
    """
    home = find_home()
    return request_of(
        str(options.dataset),
        split=options.split,
        data_dir=None if options.data_dir is None else given_path(options.data_dir),
        home=None if home is None else home / "data",
        columns=options.columns,
        pixels=options.pixels,
    )


def open_request(kind: str, request: Request) -> Samples:
    """Load what is asked of a kind of data set.

    Raises:
        UserError: for files that are not as expected, and for rules of pixels if there are no files of images.
    """
    samples = load_source(kind).load(request)
    if samples.pixels.fields() != (asked := request.pixels.fields()):
        raise UserError(
            f"data set {samples.name!r} does not hold images that these options could decode otherwise: leave out "
            f"{' and '.join(asked)}."
        )
    return samples

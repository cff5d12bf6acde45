"""Images of the samples that a report shows, as the backbone sees them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.cache.manifest import Manifest
from losa_cache.data.picture import load_image, upright
from losa_cache.data.pixel_rules import PixelRules
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError


def images_of(folder: Path, ids: Sequence[str], manifest: Manifest) -> list[NDArray[np.uint8] | None]:
    """Load images by the ids of their samples, with the transform of the cache: resized and cropped as masks are.

    Args:
        folder: of the data set, below which ids are paths.
        ids: of the samples.
        manifest: of what was evaluated.

    Returns:
        uint8 ``(H, W, 3)`` each; ``None`` where there is no image of this id.

    Raises:
        UserError: if there is none of them.
    """
    fields = manifest.fields["input"].items()
    arguments: dict[str, Any] = {name: tuple(own) if isinstance(own, list) else own for name, own in fields}
    spec = InputSpec(**arguments)
    split = manifest.fields["dataset"]["split"]
    found = [
        _image(path, spec, manifest.pixels, manifest.upright) for path in (_path(folder, split, own) for own in ids)
    ]
    if all(own is None for own in found):
        raise UserError(
            f"images is {str(folder)!r}, which holds none of the samples, such as {ids[0]!r}: name the folder of the "
            "data set that was evaluated."
        )
    return found


def _path(folder: Path, split: str, own: str) -> Path | None:
    """Find the file of a sample in a data set's folder or in that of a split; ids are from outside and stay below."""
    root = folder.resolve()
    paths = ((root / own).resolve(), (root / split / own).resolve())
    return next((path for path in paths if path.is_relative_to(root) and path.is_file()), None)


def _image(path: Path | None, spec: InputSpec, pixels: PixelRules, turned: bool) -> NDArray[np.uint8] | None:
    if path is None:
        return None
    try:
        image = load_image(path, pixels)
        array = spec.transform()(upright(image) if turned else image).numpy()
    except Exception as error:  # whatever a decoder raises
        raise UserError(f"image {str(path)!r} cannot be read ({error}): leave out --images.") from error
    shown: NDArray[np.uint8] = np.broadcast_to(array.transpose(1, 2, 0), (*array.shape[1:], 3))
    return shown

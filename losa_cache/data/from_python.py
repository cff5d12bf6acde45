"""A data set of Python objects: any map-style data set of torch, or a list of pairs of an image and its class."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from losa_cache.data.random_transforms import require_no_random_transform, require_same_images
from losa_cache.data.samples import Samples, described, hash_lines, usable_ids
from losa_cache.errors import UserError

LOOKED_AT = 16
"""Images of a data set that are decoded for its fingerprint, if its labels are known without decoding."""

_HUGGING_FACE = (  # a user's own module may be called datasets, too
    ("datasets.arrow_dataset", "Dataset"),
    ("datasets.iterable_dataset", "IterableDataset"),
    ("datasets.dataset_dict", "DatasetDict"),
)


class MapStyle(Protocol):
    """What torch calls a map-style data set: pairs of an image and the number of its class, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def samples_of(
    data: MapStyle | Iterable[tuple[Any, int]],
    name: str,
    *,
    split: str,
    labels: Sequence[int] | NDArray[np.int64] | None,
    classes: Sequence[str] | None,
    ids: Sequence[str] | None,
    fingerprint: str | None,
) -> Samples:
    """Build a data set (arguments as of :meth:`losa_cache.data.samples.Samples.of`)."""
    items = _items(data, name)
    count = len(items)
    held = isinstance(items, list | tuple | np.ndarray | torch.Tensor)
    if not held:
        require_no_random_transform(items, name)
    names = usable_ids((f"{place:06d}" for place in range(count)) if ids is None else map(str, ids), name)
    numbers = None if labels is None else np.asarray(labels)
    if len(names) != count or (numbers is not None and len(numbers) != count):
        raise UserError(
            f"data set {name!r} has {count} images, {count if numbers is None else len(numbers)} labels and "
            f"{len(names)} ids: give one of each for every sample."
        )
    if len(set(names)) < count:
        raise UserError(f"data set {name!r} has an id twice: ids tell samples apart.")
    if numbers is not None and count and (numbers.dtype.kind not in "iub" or numbers.ndim > 1):
        given = f"of the type {numbers.dtype} and the shape {numbers.shape}"
        raise UserError(
            f"labels of data set {name!r} are {given}: give one number for each sample, that of its class, and "
            "the names of the classes as classes=."
        )
    looked_at = _spread(count)
    if numbers is None:
        numbers = _stored_labels(items)
        if numbers is not None and any(_label(items[place], place) != numbers[place] for place in looked_at):
            numbers = None  # its items are labelled otherwise: by a target_transform
    if fingerprint is not None:
        numbers = np.array([_label(items[place], place) for place in range(count)]) if numbers is None else numbers
        lines = [*_lines(names, numbers), f"version\t{fingerprint}"]
    elif held or numbers is None:
        numbers, lines = _read_all(items, names, numbers)
    else:
        lines = [*_lines(names, numbers), *_look(items, looked_at)]
    if not held and fingerprint is None:
        require_same_images(lambda place: described(picture(_image(items[place]), place)), looked_at[::2], name)
    return Samples(
        name=name,
        split=split,
        classes=tuple(_classes(items, numbers) if classes is None else map(str, classes)),
        ids=names,
        labels=numbers.astype(np.int64),
        load=lambda place: picture(_image(items[place]), place),
        fingerprint=hash_lines(lines),
    )


def _lines(names: Sequence[str], numbers: NDArray[np.int64]) -> list[str]:
    return [f"{own}\t{label}" for own, label in zip(names, numbers.tolist(), strict=True)]


def picture(image: Any, place: int) -> Image.Image:
    """Take an image as a data set gives it.

    Floating-point values from 0 to 1, as ToTensor makes them, are multiplied by 255 and rounded.

    Args:
        image: of PIL; an array ``(height, width)`` or ``(height, width, channels)``; or a tensor ``(height, width)`` or
            ``(channels, height, width)``, with 1 or 3 channels. Channels may come first in an array and last in a
            tensor where the sizes leave no doubt.
        place: its index, for messages.

    Raises:
        UserError: for anything else, such as normalised tensors.
    """
    if isinstance(image, Image.Image):
        return image
    tensor = isinstance(image, torch.Tensor)
    if not tensor and not isinstance(image, np.ndarray):
        raise UserError(
            f"image {place} is of the type {type(image).__name__}: give a PIL image, an array or a tensor; files are "
            "named by a table or lie in class folders."
        )
    values = np.asarray(image.detach().cpu().float() if tensor and image.is_floating_point() else image)
    given = f"image {place} is {'a tensor' if tensor else 'an array'} of {values.dtype} {values.shape}"
    if values.ndim == 3:
        axes = [axis for axis in ((0, 2) if tensor else (2, 0)) if values.shape[axis] in (1, 3)]
        values = np.moveaxis(values, axes[0], 2) if axes else values[None]  # of four dimensions: refused
    if values.ndim not in (2, 3) or not values.size:
        raise UserError(f"{given}: give (height, width), (height, width, 3), or a tensor (3, height, width).")
    if values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1:  # NaN is neither
        values = np.rint(values * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        span = f" from {values.min():g} to {values.max():g}" if values.dtype.kind == "f" else ""
        raise UserError(f"{given}{span}: give uint8, or floats from 0 to 1, before they are normalised.")
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2:] == (1,) else values))


def _items(data: Any, name: str) -> MapStyle:
    if isinstance(data, Iterator):
        return list(data)
    if (type(data).__module__, type(data).__name__) in _HUGGING_FACE:
        raise UserError(
            f"data set {name!r} is a {type(data).__name__} of the Hugging Face library: write it with "
            "save_to_disk('FOLDER'), and pass 'hf:FOLDER' as the data set."
        )
    if isinstance(data, Mapping) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise UserError(
            f"data set {name!r} is of the type {type(data).__name__}: give one with a length and items by index (a "
            "map-style data set of torch), or a list of pairs of an image and its class."
        )
    return cast(MapStyle, data)


def _spread(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(int)).tolist() if count else []


def _pair(item: Any, place: int) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise UserError(
            f"item {place} is of the type {type(item).__name__}: it must be a pair of an image and the number of its "
            "class."
        )
    return item[0], item[1]


def _image(item: Any) -> Any:
    return item[0] if isinstance(item, tuple | list) else item  # with labels=, a data set of images alone


def _label(item: Any, place: int) -> int:
    target = _pair(item, place)[1]
    try:
        return int(np.asarray(target).astype(np.int64, casting="same_kind").reshape(()))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"target {place} is {str(target)[:80]!r}, which is no number of a class: pass labels=, a number for each "
            "sample, and the names of the classes as classes=."
        ) from error


def _stored_labels(data: Any) -> NDArray[np.int64] | None:
    """Find the labels without decoding an image, where torchvision's data sets keep them; a subset knows its own."""
    if hasattr(data, "dataset") and hasattr(data, "indices"):
        whole = _stored_labels(data.dataset)
        return None if whole is None else whole[np.asarray(data.indices, dtype=np.int64)]
    for attribute in ("targets", "labels", "_labels", "y"):
        try:
            found = np.asarray(getattr(data, attribute, ()))
        except (TypeError, ValueError, RuntimeError):
            continue
        if found.shape == (len(data),) and found.dtype.kind in "iu":
            return found.astype(np.int64)
    return None


def _classes(data: Any, labels: NDArray[np.int64]) -> list[str]:
    """Name the classes as the data set does, or by their numbers."""
    while hasattr(data, "dataset") and hasattr(data, "indices"):
        data = data.dataset
    for attribute in ("classes", "categories"):
        named = getattr(data, attribute, None)
        if isinstance(named, list | tuple) and named:
            return [str(each) for each in named]
    if isinstance(numbered := getattr(data, "class_to_idx", None), Mapping) and numbered:
        if (numbers := sorted(numbered.values())) != list(range(len(numbered))):
            raise UserError(
                f"class_to_idx of the data set numbers {len(numbers)} classes {str(numbers)[:80]}, not from 0 on, each "
                "once: pass classes=, the names in the order of their numbers."
            )
        return [str(each) for each in sorted(numbered, key=numbered.__getitem__)]
    return [str(number) for number in range(int(labels.max(initial=-1)) + 1)]


def _read_all(
    items: MapStyle, names: Sequence[str], labels: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], list[str]]:
    """Read every sample once: its label, if that is not known, and a line for the fingerprint."""
    lines, numbers = [], []
    for place, own in enumerate(names):
        item = items[place]
        number = _label(item, place) if labels is None else int(labels[place])
        lines.append(f"{own}\t{number}\t{described(picture(_image(item), place))}")
        numbers.append(number)
    return np.array(numbers, dtype=np.int64), lines


def _look(items: MapStyle, places: Sequence[int]) -> list[str]:
    """Describe some images for the fingerprint."""
    return [f"{place}\t{described(picture(_image(items[place]), place))}" for place in places]

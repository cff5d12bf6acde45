"""Transforms that give another image each time: a cache holds every image once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from losa_cache.errors import UserError

_NAMED = frozenset(
    ("AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix", "ColorJitter", "ElasticTransform", "ScaleJitter")
)
"""Random transforms of torchvision whose names do not begin with ``Random``."""
_LINKS = ("transform", "transforms", "dataset", "datasets")  # attributes that lead to transforms
_MOST = 1000  # objects that are looked at
_TIMES = 4


def require_no_random_transform(data: object, name: str) -> None:
    """Refuse a data set with a random transform of torchvision, named by its class.

    Args:
        data: a data set; transforms are found in what wraps or holds others, too.
        name: of the data set.

    Raises:
        UserError: naming the transform.
    """
    for each in _linked(data):
        kind = type(each).__name__
        if callable(each) and (kind.startswith("Random") or kind in _NAMED):
            raise _refused(name, f"has the random transform {kind}")


def require_same_images(read: Callable[[int], str], places: Sequence[int], name: str) -> None:
    """Refuse a data set that gives another image when it is asked again, 4 times.

    Args:
        read: describes the image of an index by its pixels.
        places: indices of the images that are asked for.
        name: of the data set.

    Raises:
        UserError: naming the image.
    """
    for place in places:
        if len({read(place) for _ in range(_TIMES)}) > 1:
            raise _refused(name, f"gives another image {place} each time")


def _refused(name: str, what: str) -> UserError:
    return UserError(f"data set {name!r} {what}: a cache holds every image once, so take random transforms out of it.")


def _linked(data: object) -> Iterator[Any]:
    """Walk from a data set to its transforms, and to the data sets and transforms inside of these."""
    waiting, seen = [data], set[int]()
    while waiting and len(seen) < _MOST:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, list | tuple):
            waiting.extend(each)
            continue
        yield each
        held = getattr(each, "__dict__", {})
        waiting.extend(held[link] for link in _LINKS if link in held)
        if isinstance(each, torch.nn.Module):  # such as Sequential
            waiting.extend(each.children())

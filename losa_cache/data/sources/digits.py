"""The default data set: scikit-learn's digits, real scans of 8 x 8 pixels, split by class.

Digits 0-4 are for pretraining; only ``scripts/pretrain_digits.py`` reads them. Digits 5-9 are the downstream task, with
a fixed train/test split. So every figure on ``digits`` is measured on images and classes that were not used for
pretraining.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from losa_cache.data.names import require_split
from losa_cache.data.request import Request
from losa_cache.data.samples import Samples, hash_lines
from losa_cache.data.spec import SourceSpec
from losa_cache.extras import extra

SPEC = SourceSpec(embedded=True, splits=("train", "test"))

PRETRAINING_CLASSES, DOWNSTREAM_CLASSES = range(5), range(5, 10)


def digit_scans(classes: range) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Return the scans of these digits as uint8 ``(N, 8, 8)``, their digits, and their places in scikit-learn's order.

    Raises:
        UserError: if scikit-learn is not installed.
    """
    with extra("sklearn", "data set 'digits' needs scikit-learn", "digits"):
        from sklearn import datasets
    bunch = datasets.load_digits()
    places = np.flatnonzero(np.isin(bunch.target, list(classes)))
    scans = np.rint(bunch.images[places] * (255 / 16)).astype(np.uint8)
    return scans, bunch.target[places].astype(np.int64), places


def load(request: Request) -> Samples:
    """Load the downstream task: 448 images to train on, 448 to test.

    Raises:
        UserError: for another split.
    """
    split = request.split
    require_split("digits", split)
    scans, digits, places = digit_scans(DOWNSTREAM_CLASSES)
    order = np.random.default_rng(0).permutation(len(scans))
    half = len(scans) // 2
    chosen = np.sort(order[:half] if split == "train" else order[half:])
    scans, labels, places = scans[chosen], digits[chosen] - DOWNSTREAM_CLASSES.start, places[chosen]
    ids = [f"{place:04d}" for place in places]
    return Samples(
        name="digits",
        split=split,
        classes=tuple(str(digit) for digit in DOWNSTREAM_CLASSES),
        ids=ids,
        labels=labels,
        load=lambda i: Image.fromarray(scans[i]),
        fingerprint=hash_lines((f"{i}\t{label}" for i, label in zip(ids, labels, strict=True)), scans.tobytes()),
    )

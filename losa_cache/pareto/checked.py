"""What is refused before a comparison begins: data that nothing can be learned from, and caches of other images."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from losa_cache.cache.store import open_cache
from losa_cache.errors import UserError
from losa_cache.inputs import load_given, open_inputs
from losa_cache.inputs_config import ImageConfig, InputsConfig
from losa_cache.options import options_of
from losa_cache.targets.align import unmatched
from losa_cache.targets.choose import choose_targets
from losa_cache.targets.target_set import CLASS, LABELS
from losa_cache.tasks import CLASSIFICATION, get_task
from losa_cache.train.sampler import hold_out
from losa_cache.train.training_data import require_same_images


def require_data(options: Mapping[str, Any]) -> None:
    """Refuse a data set whose training split cannot be learned or held out from, or whose test split cannot judge.

    Args:
        options: of the study.

    Raises:
        UserError: naming the data set.
    """
    train, test = (load_given(_inputs(options, split)) for split in (options["split"], options["test_split"]))
    kinds = {LABELS: CLASS} | {name: source.kind for name, source in train.targets.items()}
    place, adding = f"data set {train.name!r}", "class folders, or a column of classes (--columns)"
    name = choose_targets(get_task(CLASSIFICATION), kinds, place, classes=train.classes, adding=adding)
    if options["rates"] > 1:
        hold_out(np.arange(len(train)), train.ids, options["val_fraction"])
    if name == LABELS and (problem := unmatched(CLASS, train.classes, test.classes)):
        raise UserError(
            f"split {options['test_split']!r} of data set {train.name!r} has other classes than split "
            f"{options['split']!r} ({problem}): name another --test-split."
        )


def require_caches(options: Mapping[str, Any]) -> None:
    """Refuse caches that were given and are not of these images, by this backbone and in this precision.

    Args:
        options: of the study.

    Raises:
        UserError: naming the fields that differ.
    """
    for given, split in (("cache", options["split"]), ("test_cache", options["test_split"])):
        if options[given] is not None:
            cache = open_cache(options[given])
            config = _inputs(
                options, split, precision=options["precision"], seed=cache.manifest.fields["sampling"]["seed"]
            )
            require_same_images(cache, open_inputs(config=config, device=torch.device("cpu")))


def _inputs(options: Mapping[str, Any], split: str, **more: Any) -> InputsConfig:
    images = {own.name: options[own.name] for own in options_of(ImageConfig)}
    return InputsConfig(**images | {"split": split} | more)

"""``predictions.json`` of a run: the class that it predicts for each test image, and what that was computed from.

The file has a checksum and names the run, the adapter and the cache, so that it is used again only if a new evaluation
would give the same numbers. Samples are sorted by their ids, so that the order of the cache does not matter.
"""

import errno
import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from losa_cache.cache.manifest import Manifest
from losa_cache.cache.store import ActivationCache
from losa_cache.errors import UserError
from losa_cache.files import unsealed, write_sealed
from losa_cache.outside import UnreadableError, fit, read_file
from losa_cache.sidenet.adapter_file import load_adapter_config
from losa_cache.sidenet.adapter_folder import find_files
from losa_cache.train.compatible import target_name
from losa_cache.train.evaluate_run import Evaluated, evaluated
from losa_cache.train.loop import Progress
from losa_cache.train.run import Run

NAME = "predictions.json"
MOST_BYTES = 2**28

log = logging.getLogger(__name__)

Shape = TypeVar("Shape")
Count = Annotated[int, Meta(ge=0)]
Digest = Annotated[str, Meta(max_length=100)]


@dataclass(frozen=True)
class Predictions:
    """The predictions of a run for each image of a test cache.

    Attributes:
        run, adapter: digests of the run's config and of its adapter's tensors.
        cache: identity of the test cache, and the end of the fingerprint of a target set beside its labels.
        images: digest of the data set's fingerprint, the ids and the labels: the same for the same images.
        predicted, labels: the number of each image's class, in the order of their ids.
        parameters: numbers of trained parameters, ``{"side", "classifier"}``.
    """

    run: Digest
    adapter: Digest
    cache: Digest
    images: Digest
    predicted: list[Count]
    labels: list[Count]
    parameters: dict[str, Count]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each image's class is the predicted one."""
        return np.array(self.predicted) == np.array(self.labels)


def predictions(run: Path, cache: ActivationCache, *, device: str | None, progress: Progress) -> Predictions:
    """Read a finished run's predictions on a test cache, or compute and store them.

    Args:
        run: its directory.
        cache: of the test images.
        device: by default the GPU where there is one.
        progress: is given the share done.

    Raises:
        UserError: if the run is not finished, was altered, or does not fit the cache.
    """
    known = read_kept(run / NAME, Predictions)
    wanted = (Run(run).digest(), _adapter_digest(run), _judges(run, cache.manifest))
    if known is not None and (known.run, known.adapter, known.cache) == wanted:
        return known
    made = _ordered(evaluated(run, cache=cache.path, device=device, progress=progress), *wanted)
    keep(run / NAME, asdict(made))
    return made


def images_digest(fields: dict[str, Any], ids: list[str], labels: list[int]) -> str:
    """Give a digest that is the same for the same test images and labels.

    Args:
        fields: of a cache's identity.
        ids, labels: of all samples, in the order of the ids.
    """
    content = json.dumps([fields["dataset"]["fingerprint"], ids, labels]).encode()
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _ordered(found: Evaluated, run: str, adapter: str, cache: str) -> Predictions:
    outcome = found.outcome
    order = sorted(range(len(outcome.ids)), key=outcome.ids.__getitem__)
    ids = [outcome.ids[place] for place in order]
    decided = found.task.decided(outcome.predictions)
    predicted, labels = (column[order].tolist() for column in (decided, outcome.targets))
    images = images_digest(found.manifest.fields, ids, labels)
    return Predictions(run, adapter, cache, images, predicted, labels, found.parameters)


def _judges(run: Path, manifest: Manifest) -> str:
    """Name what a run is tested on: the cache and, where that is not its labels, the target set, which may change."""
    described = manifest.targets.get(target_name(load_adapter_config(run)))
    return manifest.identity if described is None else f"{manifest.identity} {described['fingerprint'][-16:]}"


def _adapter_digest(run: Path) -> str:
    """Give the digest of the adapter's tensors; adapters of earlier versions do not name it."""
    known = load_adapter_config(run).get("sha256")
    if isinstance(known, str):
        return known
    tensors = find_files(run).tensors
    try:
        return hashlib.sha256(read_file(tensors, at_most=2**40)).hexdigest()
    except UnreadableError as error:
        raise UserError(f"adapter {str(tensors)!r} cannot be loaded ({error}).") from error


def keep(path: Path, content: dict[str, Any]) -> None:
    """Write the predictions, whole or not at all. If they cannot be written, there is only a warning."""
    try:
        write_sealed(path, content)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT):
            raise
        log.warning("%r cannot be written (%s): the next compare computes it again.", str(path), error.strerror)


def read_kept(path: Path, shape: type[Shape]) -> Shape | None:
    """Read the predictions; ``None`` if there are none that can be used: then they are computed again."""
    if not path.exists():
        return None
    try:
        return fit(unsealed(read_file(path, at_most=MOST_BYTES), NAME), shape)
    except (UnreadableError, ValueError) as error:
        log.warning("%r is computed again: %s.", str(path), error)
        return None

"""The options of a run with the backbone in the loop."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from losa_cache.cache.precision_names import require_precision
from losa_cache.data.data_config import DATASET, of_data
from losa_cache.data.normalisation import require_normalisation
from losa_cache.data.pixel_rules import DTYPE
from losa_cache.errors import UserError
from losa_cache.inputs_config import AUGMENT, BACKBONE, WORKERS, ImageConfig, of_images
from losa_cache.points import require_tap


@dataclass(frozen=True)
class OnlineConfig(ImageConfig):
    """Where the fresh images of an online or mixed run come from, and what happens to them.

    Attributes:
        backbone, dataset: names. Objects are given to ``losa_cache.train`` beside this.
        clips: number of clips of a video; training uses one of them in an epoch, in turn.
        targets_from: table or folder that holds what is learned of the images, as of ``losa-cache targets``; by
            default it is their classes. Beside a cache, its target sets are used.
        limit: use only this many images of the data set, drawn at random, before any are held out.
        tap: what is read of each block, as in ``losa_cache.extract``; by default as in the cache, or whole blocks.
        precision: block outputs are computed in it and rounded to it; by default that of the cache, or bfloat16.
        workers: threads or processes that decode; by default one for each core, at most 16.
        share: fresh share of every batch: 1 is online, less is mixed with a cache.
        augment: timm's name of the augmentation (``rand-m9-mstd0.5-inc1``; ``crop`` for random crop and flip alone).
        mixup, cutmix: alpha of their Beta distribution; 0: not used.
        reprob: probability of random erasing.
    """

    backbone: Annotated[str, of_images(BACKBONE)]
    dataset: Annotated[str, of_data(DATASET, path=True)]
    targets_from: Annotated[
        str | None,
        of_images(
            "Table, or folder of masks or depth maps, with the targets of the images; default: their classes. "
            "Beside a cache the targets are those of the cache.",
            path=True,
        ),
    ] = None
    limit: Annotated[
        int | None,
        of_images(
            "Use only this many images of the data set, drawn at random, before any are held out.", flag="online-limit"
        ),
    ] = None
    tap: Annotated[
        str | None,
        of_images(
            "What is read of each layer: block (its output), attention or mlp (what that branch adds), or "
            "both; default: as in the cache, or block."
        ),
    ] = None
    precision: Annotated[
        str | None,
        of_images(
            "Precision that the backbone computes in and block outputs are rounded to; default: that of the "
            "cache, or bfloat16."
        ),
    ] = None
    workers: Annotated[int | None, of_images(WORKERS)] = None
    share: float = 1.0
    augment: Annotated[str | None, of_images(AUGMENT)] = None
    mixup: Annotated[float, of_images("Alpha of mixup; 0: no mixup.")] = 0.0
    cutmix: Annotated[float, of_images("Alpha of cutmix; 0: no cutmix.")] = 0.0
    reprob: Annotated[float, of_images("Probability that random erasing changes an image.")] = 0.0

    def __post_init__(self) -> None:
        self.require_pixels()
        require_normalisation(self.normalise)
        if not 0 < self.share <= 1:
            raise UserError(f"mixed is {self.share}: the share of fresh samples must lie above 0 and at most at 1.")
        if self.tap is not None:
            require_tap(self.tap)
        if self.precision is not None:
            require_precision(self.precision)
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers is {self.workers}: it must be at least 1.")

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "OnlineConfig":
        """Take what :meth:`to_json` gave; older versions, which did not say, left pictures as they are stored, and dark
        ones dark.
        """
        older: dict[str, Any] = {"ignore_orientation": True, "range": DTYPE}
        return cls(**older | content)

    def to_json(self) -> dict[str, Any]:
        """Give the fields, with paths that hold from any working directory."""
        return asdict(self) | self.paths(self.dataset, Path.resolve)

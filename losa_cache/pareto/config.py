"""The options of ``pareto``, beside those that say what the backbone runs on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from losa_cache.cache.precision_names import require_precision
from losa_cache.errors import UserError, require_counts
from losa_cache.inputs_config import PANEL, PRETRAINED, RANDOM, WORKERS, ImageConfig
from losa_cache.options import Option, options_of
from losa_cache.pareto.entries import NETWORKS, all_entries, parse_entries
from losa_cache.train.config import of_recipe
from losa_cache.tuned.spec import METHODS

MOST = 100
"""Seeds, or learning rates, of one method."""
CLASSES = 100
"""The classifier has so many classes where costs alone are measured."""


@dataclass(frozen=True, kw_only=True)
class ParetoConfig:
    """What is compared, and on what terms, which are the same for all methods.

    Attributes:
        methods: names, joined by commas (``losa_cache.pareto.entries``); by default all that fit the backbone.
        epochs, batch_size: of every training.
        recipe: the other options of every training (``losa_cache.train.config.RECIPES``).
        rates: learning rates among which each method's is chosen on held-out samples; 1: its default is taken.
        val_fraction: share of the training samples that is held out for that choice, the same ones for all methods.
        seeds: with which each method is then trained on all training samples and tested: 0, 1, ...
        test_split: of the data set, which each of these trainings is tested on, once.
        precision: of the cache, and of the backbone's outputs where it runs in every step.
        grad_checkpointing: of methods that train inside the backbone: computes outputs of blocks again in the backward
            pass, in place of keeping them.
        workers: threads that decode.
    """

    methods: Annotated[
        str | None,
        Option(
            f"Methods, joined by commas: {', '.join([*NETWORKS, *METHODS])}; each may have a variant (lora:qkv) and a "
            "rank (losa@8). A side network's name with :online trains it with the backbone in every step. "
            "Default: all that fit the backbone."
        ),
    ] = None
    epochs: Annotated[int, Option("Number of passes over the training samples, of every training.")] = 30
    batch_size: Annotated[int, Option("Samples in a training step.")] = 64
    recipe: Annotated[str, Option("Preset of the other options of every training: default or paper (as in train).")] = (
        "default"
    )
    rates: Annotated[
        int,
        Option(
            "Number of learning rates, half a decade apart around each method's default, among which held-out samples "
            "decide; 1: the default is taken."
        ),
    ] = 3
    val_fraction: Annotated[
        float, Option("Share of the training samples held out for the choice of the rate, the same for all methods.")
    ] = 0.2
    seeds: Annotated[
        int, Option("Number of seeds with which each method is trained on all training samples, and tested: 0, 1, ...")
    ] = 3
    test_split: Annotated[str, Option("Split of the data set that is tested on.", panel=PANEL)] = "test"
    precision: Annotated[
        str,
        Option(
            "Precision of the cache, and of the backbone's outputs where it runs in every step: as in extract.",
            panel=PANEL,
        ),
    ] = "bfloat16"
    grad_checkpointing: Annotated[
        bool,
        Option(
            "Of methods that train inside the backbone: compute the outputs of blocks again in the backward pass, "
            "which takes less memory and more time."
        ),
    ] = False
    workers: Annotated[int | None, Option(WORKERS, panel=PANEL)] = None

    def __post_init__(self) -> None:
        if self.methods is not None:
            parse_entries(self.methods)
        require_counts(epochs=self.epochs, batch_size=self.batch_size, workers=self.workers)
        for name in ("seeds", "rates"):
            if not 1 <= (value := getattr(self, name)) <= MOST:
                raise UserError(f"{name} is {value}: it must lie between 1 and {MOST}.")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"val-fraction is {self.val_fraction}: it must lie above 0 and below 1.")
        of_recipe(self.recipe)
        require_precision(self.precision)

    def entries(self, backbone: str) -> list[str]:
        """Name the methods for a backbone."""
        if self.methods is not None:
            return [entry.text for entry in parse_entries(self.methods)]
        return all_entries(video=backbone.startswith("vivit"))


def stored(images: Mapping[str, Any], config: ParetoConfig) -> dict[str, Any]:
    """Give all options as a folder stores them, with paths that hold from any working directory.

    Which methods are compared is no part of them: others may be added.

    Args:
        images: options of :class:`ImageConfig`, by name; without a data set only those of the backbone hold.
        config: the other options.
    """
    own = asdict(config)
    del own["methods"]
    if images["dataset"] is not None:
        return {**images, **ImageConfig(**images).paths(images["dataset"], Path.absolute), **own}
    weights = images["weights"]
    written = weights if weights in (PRETRAINED, RANDOM) else str(Path(weights).absolute())
    return {**images, "weights": written, **own}


def words_of(shape: type, options: Mapping[str, Any]) -> list[str]:
    """Write options on a command line, but for those that have their defaults.

    Args:
        shape: the dataclass of options.
        options: values by name, some of which may be of other dataclasses.
    """
    words: list[str] = []
    for own in options_of(shape):
        value, flag = options[own.name], own.key.replace("_", "-")
        if value == own.default or value is None:
            continue
        words += [f"--{flag}" if value else f"--no-{flag}"] if own.simple is bool else [f"--{flag}", str(value)]
    return words

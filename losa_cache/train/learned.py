"""What a run learns of its samples: its target set, and its task fitted to it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from losa_cache.cache.store import ActivationCache
from losa_cache.errors import UserError, nearest
from losa_cache.targets.align import aligned
from losa_cache.targets.choose import choose_targets, require_kind
from losa_cache.targets.read import open_source, read_targets
from losa_cache.targets.source import Source
from losa_cache.targets.target_set import CLASS, LABELS, TargetSet
from losa_cache.tasks import Task, get_task
from losa_cache.train.config import WEIGHT, TrainConfig
from losa_cache.train.online_config import OnlineConfig
from losa_cache.train.sample_files import CLASS_HEADER, names_file, parse_weights
from losa_cache.train.selection import Selection

if TYPE_CHECKING:
    from losa_cache.data.samples import Samples
    from losa_cache.inputs import Inputs


def targets_of(cache: ActivationCache, config: TrainConfig, names: Sequence[str] | None = None) -> TargetSet:
    """Give the target set of a cache that a run learns, as its task reads it.

    Args:
        cache: that holds it.
        config: the options of the run.
        names: of the classes, labels or columns of the run, if it has learned from another cache: these are matched by
            name.

    Raises:
        UserError: if the cache has none of the name, or of the task's kind; or names that the run does not know.
    """
    task = get_task(config.task)
    targets = task.targets(require_kind(task, cache.target_set(target_set_of(cache, config))))
    return targets if names is None else aligned(targets, names, f"cache {str(cache.path)!r}")


def target_set_of(cache: ActivationCache, config: TrainConfig) -> str:
    """Name the target set of a cache that a run learns.

    Raises:
        UserError: if it names none, and the cache does not make clear which it is.
    """
    if config.targets is not None:
        return config.targets
    task, classes = get_task(config.task), cache.manifest.classes
    place = f"cache {str(cache.path)!r}"
    return choose_targets(task, cache.target_kinds, place, classes=classes, groups=config.group_by)


class NamedSets(TypedDict):
    """Target sets that options name, as :func:`losa_cache.train.selection.select` takes them.

    Attributes:
        groups: that ``group_by`` names; ``None``: it names a file, or nothing.
        weights: the target set of that name, if samples are drawn by it and it is there.
    """

    groups: TargetSet | None
    weights: TargetSet | None


def named_sets(cache: ActivationCache, config: TrainConfig) -> NamedSets:
    """Give the target sets of a cache that options name.

    Raises:
        UserError: if ``group_by`` names neither one of them nor a file.
    """
    asked, known = config.group_by, cache.target_kinds
    if asked is not None and asked not in known and not names_file(asked):
        raise UserError(
            f"group-by is {asked!r}, which is neither a target set of the cache {str(cache.path)!r} "
            f"({', '.join(known)}) nor a CSV file: name one of them."
        )
    return {
        "groups": cache.target_set(asked) if asked is not None and asked in known else None,
        "weights": cache.target_set(WEIGHT) if config.sampling == WEIGHT and WEIGHT in known else None,
    }


def named_sets_of_images(samples: "Samples", config: TrainConfig) -> NamedSets:
    """Give the target sets that come with images and that options name."""

    def read(name: str | None) -> TargetSet | None:
        source = samples.targets.get(name or "")
        return None if source is None else read_targets(source, samples.ids, name=name, subset=True)

    return {"groups": read(config.group_by), "weights": read(WEIGHT if config.sampling == WEIGHT else None)}


def opened_targets(online: OnlineConfig, config: TrainConfig, cache: ActivationCache | None) -> Source | None:
    """Open what an online run learns, before the backbone is loaded.

    Raises:
        UserError: for what cannot be read, and beside a cache, whose targets are used.
    """
    if online.targets_from is None:
        return None
    if cache is not None:
        raise UserError(
            f"targets-from is {online.targets_from!r}, but the targets are those of the cache {str(cache.path)!r}: "
            "leave it out, or add them to the cache with losa-cache targets."
        )
    return open_source(online.targets_from, task=config.task, selects=False)


def targets_of_images(
    inputs: "Inputs", config: TrainConfig, source: Source | None, names: Sequence[str] | None = None
) -> TargetSet:
    """Give what a run without a cache learns: what a file or folder says, a target set that comes with the images, or
    their classes; in the names of a run, as of :func:`targets_of`.

    Raises:
        UserError: if there is none of the name, or of the task's kind.
    """
    task, samples = get_task(config.task), inputs.samples
    name = _targets_of_data(samples, config) if source is None else None
    if name is not None and name != LABELS:
        source = samples.targets[name]
    frames = None
    if source is not None and source.framed:
        from losa_cache.targets.frame import Frames

        frames = Frames(samples, inputs.backbone.input, inputs.manifest.upright)
    if source is None:
        given = TargetSet(LABELS, CLASS, samples.classes, samples.labels)
    else:  # one file may serve all splits of a data set, and a part of the images
        given = read_targets(source, samples.ids, name=name, subset=True, frames=frames)
    targets = task.targets(require_kind(task, given))
    return targets if names is None else aligned(targets, names, f"data set {samples.name!r}")


def _targets_of_data(samples: "Samples", config: TrainConfig) -> str:
    """Name the target set that comes with images and that a run learns."""
    task, asked = get_task(config.task), config.targets
    if asked is None:
        kinds = {LABELS: CLASS} | {name: source.kind for name, source in samples.targets.items()}
        place, adding = f"data set {samples.name!r}", "--targets-from FILE"
        return choose_targets(task, kinds, place, classes=samples.classes, groups=config.group_by, adding=adding)
    if asked not in (known := [LABELS, *samples.targets]):
        raise UserError(
            f"data set {samples.name!r} has no target set {asked!r}: choose one of {', '.join(known)}"
            f"{nearest(asked, known)}."
        )
    return asked


def fitted(config: TrainConfig, targets: TargetSet, chosen: Selection) -> Task:
    """Fit the task to the training samples.

    Raises:
        UserError: for targets from which it cannot be learned.
    """
    weights = {}
    if "class_weights" in chosen.files:
        assert config.class_weights is not None
        weights = parse_weights(chosen.files["class_weights"], config.class_weights, CLASS_HEADER)
    return get_task(config.task).fitted(targets, chosen.train, config, weights)


def require_augmentable(task: Task, online: OnlineConfig) -> None:
    """Refuse mixup and cutmix of targets that cannot be mixed, and augmentation that targets do not follow.

    Raises:
        UserError: naming the task.
    """
    if task.dense and (online.augment is not None or online.reprob):
        raise UserError(
            f"{_told(augment=online.augment, reprob=online.reprob)}, but targets of the task {task.name!r} do not "
            "follow the augmentation of their images: leave it out."
        )
    if (online.mixup or online.cutmix) and not task.mixes:
        raise UserError(
            f"{_told(mixup=online.mixup, cutmix=online.cutmix)}, but targets of the task {task.name!r} cannot be "
            "mixed: leave it out."
        )


def _told(**options: object) -> str:
    """Write the options that are not at their default, which is nothing."""
    return " and ".join(f"{name} is {value!r}" for name, value in options.items() if value)

"""Which target set a run learns. Pure."""

from collections.abc import Mapping

from losa_cache.errors import UserError
from losa_cache.targets.target_set import CLASS, LABELS, TargetSet
from losa_cache.tasks.base import Task


def choose_targets(task: Task, kinds: Mapping[str, str], place: object) -> str:
    """Choose the target set that a run learns if it names none: labels, or the only one of the task's kind.

    Args:
        task: to be learned.
        kinds: kind of each target set that there is, by name.
        place: of the cache, for messages.

    Raises:
        UserError: if there is none, or several.
    """
    if task.kind == CLASS:
        return LABELS
    fitting = [name for name, kind in kinds.items() if kind == task.kind]
    if not fitting:
        raise UserError(
            f"cache {str(place)!r} has no targets for the task {task.name!r}: add some with losa-cache targets "
            f"--from FILE --task {task.name}."
        )
    if len(fitting) > 1:
        raise UserError(
            f"cache {str(place)!r} has several target sets for the task {task.name!r}: choose one with --targets: "
            f"{', '.join(fitting)}."
        )
    return fitting[0]


def require_kind(task: Task, targets: TargetSet) -> TargetSet:
    """Refuse a target set that the task does not learn from.

    Raises:
        UserError: naming both.
    """
    if targets.kind != task.kind:
        raise UserError(
            f"the target set {targets.name!r} holds {DESCRIPTIONS[targets.kind]}, and the task {task.name!r} learns "
            f"{DESCRIPTIONS[task.kind]}: choose another with --targets, or another --task."
        )
    return targets


DESCRIPTIONS = {
    "class": "one class an image",
    "multilabel": "several labels an image",
    "numbers": "numbers",
    "mask": "masks",
    "depth": "depth maps",
}

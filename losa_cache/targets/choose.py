"""Which target set a run learns. Pure."""

from collections.abc import Mapping, Sequence

from losa_cache.errors import UserError
from losa_cache.targets.target_set import CLASS, LABELS, TargetSet
from losa_cache.tasks import get_task, task_names
from losa_cache.tasks.base import Task


def choose_targets(
    task: Task,
    kinds: Mapping[str, str],
    place: str,
    *,
    classes: Sequence[str],
    groups: str | None = None,
    adding: str = "losa-cache targets --from FILE",
) -> str:
    """Choose the target set that a run learns if it names none: labels, or the only one of the task's kind.

    Labels of one class, as images without class folders have them, are no choice: then it is the only other target set
    of classes.

    Args:
        task: to be learned.
        kinds: kind of each target set that there is, by name.
        place: where they are, for messages: ``cache '/a/b.zarr'``.
        classes: of the labels.
        groups: a target set that names groups, and is not learned.
        adding: what adds target sets, for messages.

    Raises:
        UserError: if there is none, or several.
    """
    if task.kind == CLASS and len(classes) > 1:
        return LABELS
    fitting = [name for name, kind in kinds.items() if kind == task.kind and name not in (LABELS, groups)]
    if not fitting and task.kind == CLASS:
        others = [name for name in kinds if name not in (LABELS, groups)]
        each = "; ".join(f"{name}: --task {' or '.join(tasks_of(kinds[name]))}" for name in others)
        remedy = f"choose the task of a target set ({each})" if others else f"add others with {adding}"
        raise UserError(
            f"the labels of {place} are all {', '.join(map(repr, classes))}, and the task {task.name!r} "
            f"needs at least two classes: {remedy}."
        )
    if not fitting:
        raise UserError(
            f"{place} has no targets for the task {task.name!r}: add some with {adding} --task {task.name}."
        )
    if len(fitting) > 1:
        raise UserError(
            f"{place} has several target sets for the task {task.name!r}: choose one with --targets: "
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
            f"{DESCRIPTIONS[task.kind]}: choose another with --targets, or --task "
            f"{' or '.join(tasks_of(targets.kind))}."
        )
    return targets


def tasks_of(kind: str) -> list[str]:
    """Name the tasks that learn from a kind of target set."""
    return [name for name in task_names() if get_task(name).kind == kind]


DESCRIPTIONS = {
    "class": "one class an image",
    "multilabel": "several labels an image",
    "numbers": "numbers",
    "mask": "masks",
    "depth": "depth maps",
}

"""Kinds of tasks, found by name: every module here but ``base`` is one, whose ``TASK`` says all about it.

Packages here are none: ``measures`` computes metrics.

Names are known without importing torch, numpy or a task.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from losa_cache.errors import UserError, nearest
from losa_cache.tasks.base import Task
from losa_cache.tasks.measures.metric import Metric

__all__ = ["CLASSIFICATION", "Metric", "Task", "get_task", "list_losses", "list_metrics", "require_task", "task_names"]

CLASSIFICATION = "classification"
"""The task of runs, adapters and records that do not name one."""


@cache
def task_names() -> tuple[str, ...]:
    """Name the tasks that are known, in alphabetical order."""
    return tuple(sorted(module.name for module in iter_modules(__path__) if module.name != "base" and not module.ispkg))


def require_task(name: str) -> None:
    """Refuse an unknown task.

    Raises:
        UserError: naming the known ones.
    """
    if name not in task_names():
        known = task_names()
        raise UserError(f"unknown task {name!r}: choose one of {', '.join(known)}{nearest(name, list(known))}.")


def list_losses() -> str:
    """List the losses that ``--loss`` can name, by task."""
    return _listed({name: get_task(name).training_losses for name in task_names()})


def list_metrics() -> str:
    """List the metrics that ``--metric`` can name, by task."""
    tasks = {name: get_task(name) for name in task_names()}
    return _listed({name: [own.name for own in (*task.metrics, *task.more)] for name, task in tasks.items()})


def _listed(values: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"of {name} {', '.join(own)}" for name, own in values.items() if len(own) > 1)


@cache
def get_task(name: str) -> Task:
    """Find a task by its name.

    Raises:
        UserError: for an unknown one.
    """
    require_task(name)
    task: Task = import_module(f"{__name__}.{name}").TASK
    return task

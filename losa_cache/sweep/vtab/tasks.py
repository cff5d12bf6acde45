"""Find the tasks of VTAB-1k in a folder of caches, and say why one of them cannot be used."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from losa_cache.cache.identity import differences
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.data.label_files import read_list
from losa_cache.data.sources.vtab import (
    BOTH,
    NAME,
    TASKS,
    TEST,
    TRAIN,
    TRAINING_SAMPLES,
    VAL,
    VALIDATION_SAMPLES,
    list_path,
)
from losa_cache.errors import UserError
from losa_cache.folders import require_folder_of_caches
from losa_cache.sweep.vtab.record import LeftOut
from losa_cache.train.compatible import BELONG_TOGETHER, SIDES, apart

ALIKE = (*BELONG_TOGETHER, "layers", "precision")
"""What the caches of all tasks agree in: one table is of one backbone."""
PARTIAL = (".receipts", ".partial")


@dataclass(frozen=True)
class TaskCaches:
    """A task that can be used.

    Attributes:
        name: of the task.
        train, test: its caches of ``train800val200`` and ``test``.
        val_ids: ids of the training cache that are of ``val200``.
    """

    name: str
    train: ActivationCache
    test: ActivationCache
    val_ids: list[str]


def find_tasks(folder: Path) -> tuple[list[TaskCaches], list[LeftOut]]:
    """Look for caches of VTAB-1k's tasks anywhere below a folder.

    Returns:
        each task of which there is a cache, in the order of the paper's Table 1 and then by name: those that can be
        used and those that cannot, and after these the stores that do not open.

    Raises:
        UserError: if there is no such folder.
    """
    require_folder_of_caches(folder)
    caches: dict[str, list[ActivationCache]] = {}
    broken = []
    for path in _stores(folder):
        try:
            cache = open_cache(path, incomplete=True)
        except UserError as error:
            broken.append(LeftOut(None, str(error).removesuffix(".")))
            continue
        kind, _, task = cache.manifest.fields["dataset"]["name"].partition("/")
        if kind == NAME and task and "/" not in task:  # it names folders
            caches.setdefault(task, []).append(cache)
    order = [*TASKS, *sorted(caches.keys() - TASKS.keys())]
    judged = [_judge(task, caches[task]) for task in order if task in caches]
    usable = [task for task in judged if isinstance(task, TaskCaches)]
    return usable, [task for task in judged if isinstance(task, LeftOut)] + broken


def require_alike(tasks: Sequence[TaskCaches]) -> None:
    """Refuse training caches of several backbones, inputs, layers or precisions.

    Raises:
        UserError: naming two of them and what differs.
    """
    for task in tasks[1:]:
        first, cache = tasks[0].train, task.train
        ours, theirs = ({name: c.manifest.fields[name] for name in ALIKE} for c in (first, cache))
        if wrong := differences(ours, theirs, ("of the first", "of the second")):
            raise UserError(
                f"{str(first.path)!r} and {str(cache.path)!r} do not belong in one table: they differ in "
                f"{'; '.join(wrong)}. Keep the caches of each backbone in a folder of their own."
            )


def val200_ids(cache: ActivationCache) -> list[str] | None:
    """Give the ids of a training cache that belong to val200, by their own text or else by the list beside the images.

    Returns:
        ids, sorted; ``None`` if neither tells.
    """
    ids = list(cache.sample_ids.take(cache.samples))
    splits = {name: name.removeprefix("images/").partition("/")[0] for name in ids}
    wanted = {name for name, split in splits.items() if split == VAL}
    if wanted and {*splits.values()} <= {TRAIN, VAL}:
        return sorted(wanted)
    folder = (cache.manifest.options or {}).get("data_dir")
    if folder is None:
        return None
    try:
        listed = {name for _, name, _ in read_list(list_path(Path(folder), VAL), whose="VTAB", hint="")}
    except UserError:
        return None
    return sorted(listed) if listed and listed < set(ids) else None


def _stores(folder: Path) -> Iterator[Path]:
    seen = set()  # a link may lead back to where it was met
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.endswith(PARTIAL))
        if (real := os.path.realpath(here)) in seen or "zarr.json" in files:
            folders.clear()
        if real not in seen and "zarr.json" in files:
            yield Path(here)
        seen.add(real)


def _judge(name: str, caches: Sequence[ActivationCache]) -> TaskCaches | LeftOut:
    one: dict[str, ActivationCache] = {}
    for split in (BOTH, TEST):
        of_split = [cache for cache in caches if cache.manifest.fields["dataset"]["split"] == split]
        complete = [cache for cache in of_split if cache.manifest.complete]
        if len(complete) != 1:
            return LeftOut(name, _count(split, of_split, complete))
        one[split] = complete[0]
    train, test = one[BOTH], one[TEST]
    if problem := _misfit(train, test):
        return LeftOut(name, problem)
    if (ids := val200_ids(train)) is None:
        return LeftOut(
            name,
            f"the ids of its cache of {BOTH} do not say which images are of {VAL}: extract it from a folder with "
            f"{TRAIN}.txt and {VAL}.txt",
        )
    if problem := _sizes(name, train, test, ids):
        return LeftOut(name, problem)
    return TaskCaches(name, train, test, ids)


def _count(split: str, of_split: Sequence[ActivationCache], complete: Sequence[ActivationCache]) -> str:
    if complete:
        paths = ", ".join(repr(str(cache.path)) for cache in complete)
        return f"it has {len(complete)} caches of {split} ({paths}): keep one of them below the folder"
    if of_split:
        return f"its cache of {split} ({str(of_split[0].path)!r}) is incomplete: run the same losa-cache extract again"
    return f"it has no cache of {split}: make one with losa-cache extract --dataset {NAME} --split {split}"


def _misfit(train: ActivationCache, test: ActivationCache) -> str | None:
    wrong = apart(train.manifest.fields, test.manifest.fields)
    if lacking := sorted(set(train.manifest.layers) - set(test.manifest.layers)):
        wrong.append(f"layers ({lacking} are not in that of {TEST})")
    wrong += differences({"classes": train.manifest.classes}, {"classes": test.manifest.classes}, SIDES)
    if wrong:
        return f"its caches do not belong together: they differ in {'; '.join(wrong)}"
    if both := set(train.ids) & set(test.ids):
        return f"{len(both)} images are in its cache of {BOTH} and in that of {TEST}, such as {min(both)!r}"
    return None


def _sizes(name: str, train: ActivationCache, test: ActivationCache, val_ids: Sequence[str]) -> str | None:
    if name not in TASKS:
        return None
    sizes = ((BOTH, len(train.samples), TRAINING_SAMPLES), (TEST, len(test.samples), TASKS[name].tests))
    for split, own, right in (*sizes, (VAL, len(val_ids), VALIDATION_SAMPLES)):
        if own != right:
            return f"there are {own} images of {split} in its caches, and VTAB-1k has {right}: extract all of them"
    return None

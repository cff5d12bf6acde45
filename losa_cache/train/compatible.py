"""Whether an adapter and block outputs, or two caches, belong together. Pure."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from losa_cache.cache.identity import differences
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.store import ActivationCache
from losa_cache.errors import UserError
from losa_cache.points import EMBEDDING
from losa_cache.sidenet.spec import side_spec
from losa_cache.targets.align import unmatched
from losa_cache.targets.target_set import LABELS
from losa_cache.tasks import CLASSIFICATION, get_task
from losa_cache.tuned.spec import Method

# an adapter works on whatever agrees in these; data set, order and precision may differ
BELONG_TOGETHER = ("backbone", "input", "tap")
SIDES = ("in training", "in these data")
"""How messages tell apart what something was trained on, and what it is given."""


def misfit(
    adapter_config: dict[str, Any],
    manifest: Manifest,
    names: Sequence[str] | None,
    *,
    in_order: bool = False,
    fresh: bool = False,
) -> str:
    """Say in which fields an adapter and block outputs do not belong together; empty where they do.

    Args:
        adapter_config: of the adapter.
        manifest: of the block outputs.
        names: of the classes, labels or columns that the adapter is to be judged by; ``None``: it is not judged, since
            it predicts its own classes of whatever images.
        in_order: whether these must be the adapter's in the same order: for callers to whom a class is its number.
            Otherwise they are matched by name (:mod:`losa_cache.targets.align`).
        fresh: whether the backbone is run, so that an adapter that changed it fits, too.
    """
    if adapter_config.get("method") and not fresh:
        return f"{trained_of(adapter_config)} trained inside the backbone, and these are outputs of the frozen one"
    wrong = apart(adapter_config["cache"]["fields"], manifest.fields)
    if lacking := [layer for layer in adapter_config["layers"] if layer not in manifest.layers]:
        wrong.append(f"layers ({lacking} are not cached)")
    if adapter_config.get("start") == EMBEDDING and EMBEDDING not in manifest.points:
        wrong.append("start (the embedding is not cached)")
    if names is not None:
        ours, kind = adapter_config["classes"], get_task(adapter_config.get("task", CLASSIFICATION)).kind
        if in_order:
            wrong += differences({"classes": ours}, {"classes": list(names)}, SIDES)
        elif problem := unmatched(kind, ours, names):
            wrong.append(f"classes ({problem})")
    sizes = {"width": manifest.width}
    own = adapter_config["adapter"]
    if own.get("dense") or not side_spec(own["side"]).pooled_rows:  # those go with all tokens as with pooled rows
        sizes["tokens"] = manifest.tokens["total"]
    wrong += differences({name: adapter_config["adapter"][name] for name in sizes}, sizes, SIDES)
    return "; ".join(wrong)


def trained_of(adapter_config: Mapping[str, Any]) -> str:
    """Name what was trained, the side network or the method, as users write it."""
    method = adapter_config.get("method")
    if method is None:
        return str(adapter_config["adapter"]["side"])
    return str(Method(**method))


def misfit_of_cache(adapter_config: dict[str, Any], cache: ActivationCache) -> str:
    """Say why an adapter cannot be judged on a cache: fields that differ, or a missing target set; empty if it can."""
    problem = misfit(adapter_config, cache.manifest, cache.manifest.names_of(target_name(adapter_config)))
    return problem or missing_targets(adapter_config, cache)


def missing_targets(adapter_config: Mapping[str, Any], cache: ActivationCache) -> str:
    """Say that a cache lacks the target set that an adapter has learned, and how to add it; empty where it has it."""
    name = target_name(adapter_config)
    if cache.manifest.names_of(name) is not None:
        return ""
    task = get_task(adapter_config.get("task", CLASSIFICATION))
    source = "FOLDER" if task.dense else "FILE"
    return (
        f"it has no target set {name!r}, which was learned: add it with losa-cache targets "
        f"{shlex.quote(str(cache.path))} --from {source} --task {task.name} --name {name}"
    )


def target_name(adapter_config: Mapping[str, Any]) -> str:
    """Say which target set an adapter has learned; adapters of earlier versions learned the labels."""
    targets: dict[str, str] | None = adapter_config.get("targets")
    return LABELS if targets is None else targets["name"]


def apart(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Say in which fields of two identities their block outputs do not belong together.

    One data set is taken upright, or as stored, in both, and decoded by the same rules. Other data sets may have no
    orientation to follow, or other files.
    """
    same = ours["dataset"]["name"] == theirs["dataset"]["name"]
    compared = (*BELONG_TOGETHER, "orientation", "pixels") if same else BELONG_TOGETHER
    return differences({k: ours.get(k) for k in compared}, {k: theirs.get(k) for k in compared}, SIDES)


def of_same_images(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Say whether two identities are of one split of one data set: what is fitted to the one, the other cannot test."""
    return bool(ours["dataset"] == theirs["dataset"])


def of_tokens(adapter_config: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """Give the config for as many rows as a point has here: all tokens, or pooled ones."""
    return adapter_config | {"adapter": adapter_config["adapter"] | {"tokens": manifest.tokens["total"]}}


def require_fit(run: object, name: str, problem: str) -> None:
    """Refuse block outputs that an adapter does not go with.

    Args:
        run: of the adapter, for the message.
        name: of what does not fit it.
        problem: that :func:`misfit` or :func:`misfit_of_cache` found.

    Raises:
        UserError: naming the problem, if there is one.
    """
    if problem:
        raise UserError(f"run {str(run)!r} does not fit {name}: {problem}.")

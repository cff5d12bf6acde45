"""Which of the known caches an adapter, or a probe, is tested on where none is named."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from losa_cache.cache.manifest import Manifest
from losa_cache.cache.registry import known_stores
from losa_cache.cache.store import HELD_OUT_SPLITS, ActivationCache, open_cache
from losa_cache.errors import UserError
from losa_cache.sidenet.adapter_file import load_adapter_config
from losa_cache.targets.target_set import LABELS
from losa_cache.train.compatible import misfit, missing_targets, of_same_images, target_name
from losa_cache.train.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOutCaches:
    """What is known of caches to test on.

    Attributes:
        chosen: the most recent complete cache of a held-out split of the same data set; ``None``: there is none.
        passed_over: says of another one, if none was chosen, which target set or classes keep it from being used;
            empty: there is none.
    """

    chosen: ActivationCache | None
    passed_over: str = ""


def caches_to_test(adapter_config: dict[str, Any], trained_from: str | None) -> HeldOutCaches:
    """Look for a cache to test a finished run on: it was not trained on it.

    Args:
        adapter_config: of the run.
        trained_from: path or URL of the cache that the run was trained from, if it was.
    """
    return _search(adapter_config, _place(_opened(trained_from)))


def known_test_cache(run: Path, *, but: str | None = None) -> ActivationCache | None:
    """Find a cache to test a finished run on, but for one; say so where only its targets speak against one."""
    _, origin = Run(run).config()
    return _told(_search(load_adapter_config(run), _place(_opened(origin["cache"])), but=but))


def test_cache_for(manifest: Manifest, targets: str = LABELS) -> ActivationCache | None:
    """Find a cache that an adapter from a cache could be tested on; say so where only its targets speak against one."""
    return _told(_search(_as_adapter(manifest, targets), _place(manifest)))


def unfit_for_test(manifest: Manifest, test: ActivationCache, targets: str = LABELS) -> str:
    """Say why another cache is no test of what was fitted to one; empty where it is one."""
    return _untested(_as_adapter(manifest, targets), test, test.manifest.names_of(targets))


def _told(found: HeldOutCaches) -> ActivationCache | None:
    if found.passed_over:
        log.warning("nothing is tested: %s.", found.passed_over)
    return found.chosen


def _as_adapter(manifest: Manifest, targets: str) -> dict[str, Any]:
    """Write down what a linear probe of a target set would say of itself, as far as it is held to other caches."""
    return {
        "cache": {"fields": manifest.fields},
        "layers": manifest.layers,
        "classes": manifest.names_of(targets),
        "targets": {"name": targets},
        "adapter": {"side": "linear", "width": manifest.width, "tokens": manifest.tokens["total"]},
    }


def _search(adapter_config: dict[str, Any], place: tuple[Any, Any] | None, *, but: str | None = None) -> HeldOutCaches:
    """Look for one of the same folder of images, if there is one.

    Folders of images all have one name, and two of them may have the same classes.
    """
    ours, elsewhere, passed_over = adapter_config["cache"]["fields"], None, ""
    for path in known_stores():
        if but is not None and path == Path(but).resolve():
            continue
        try:
            cache = open_cache(path)
        except UserError:
            continue
        theirs, names = cache.manifest.fields, cache.manifest.names_of(target_name(adapter_config))
        tests = theirs["dataset"]["split"] in HELD_OUT_SPLITS and not of_same_images(ours, theirs)
        same = ours["dataset"]["name"] == theirs["dataset"]["name"]
        if not (same and tests) or misfit(adapter_config, cache.manifest, None):
            continue
        alike = names is None or {*names} == {*adapter_config["classes"]}
        near = (place is None and alike) or (place is not None and _place(cache.manifest) == place)
        if problem := _untested(adapter_config, cache, names):
            if near and not passed_over:
                passed_over = f"cache {str(path)!r} was not used, since {problem}"
        elif near:
            return HeldOutCaches(cache)
        elif alike:  # images of a part of the classes, from elsewhere, may be another task
            elsewhere = elsewhere or cache
    return HeldOutCaches(elsewhere, "" if elsewhere is not None else passed_over)


def _untested(adapter_config: dict[str, Any], cache: ActivationCache, names: Sequence[str] | None) -> str:
    """Say why a cache is no test of an adapter; empty where it is one."""
    if problem := misfit(adapter_config, cache.manifest, names):
        return f"it differs in {problem}"
    return missing_targets(adapter_config, cache)


def _place(manifest: Manifest | None) -> tuple[Any, Any] | None:
    """Say where a cache's images lay; ``None``: it is not known."""
    if manifest is None or manifest.options is None:
        return None
    return manifest.options.get("dataset"), manifest.options.get("data_dir")


def _opened(cache: str | None) -> Manifest | None:
    """Read the manifest of the cache that a run was trained from; ``None`` where it is gone, or there was none."""
    try:
        return None if cache is None else open_cache(cache).manifest
    except UserError:
        return None

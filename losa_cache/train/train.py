"""``train`` and ``evaluate_run``: a cache to an adapter, an adapter to figures. No backbone is loaded."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from losa_cache.allocator import keep_freed_memory
from losa_cache.cache.home import known_stores
from losa_cache.cache.identity import differences
from losa_cache.cache.store import HELD_OUT_SPLITS, ActivationCache, latest_training_cache, open_cache
from losa_cache.device import choose_device
from losa_cache.errors import UserError
from losa_cache.layers import choose_layers
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.adapter_file import load_adapter, load_adapter_config, save_adapter
from losa_cache.sidenet.tail import FrozenTail
from losa_cache.train.cached import CachedSource
from losa_cache.train.config import TrainConfig
from losa_cache.train.evaluate import evaluate
from losa_cache.train.loop import Report, autocast_dtype, fit
from losa_cache.train.run import Run, next_run_path
from losa_cache.train.sampler import hold_out

# an adapter works on any cache that agrees in these; data set, order and precision may differ
BELONG_TOGETHER = ("backbone", "input", "tap")


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        run: its directory.
        metrics: of the last epoch.
        parameters: trained ones, ``{"side", "classifier"}``.
        adapter: the trained adapter.
    """

    run: Path
    metrics: dict[str, Any]
    parameters: dict[str, int]
    adapter: Adapter


def train(
    cache: str | Path | ActivationCache | None = None,
    *,
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    report: Report = lambda metrics: None,
    **options: Any,
) -> TrainResult:
    """Train a side network (or a linear probe) from a cache.

    Sets the process's malloc to keep freed memory (``losa_cache.allocator``).

    Args:
        cache: opened, or its path; by default the most recent complete one that is not of a held-out split.
        config: the options.
        out: run directory; by default ``runs/<data set>-<side>-<n>``.
        device: by default the GPU where there is one.
        report: is given each epoch's metrics.
        options: fields of :class:`TrainConfig`, over those of ``config``.

    Raises:
        UserError: for options, a cache or a directory that cannot work.
    """
    config = replace(config or TrainConfig(), **options)
    where = choose_device(device)
    if not isinstance(cache, ActivationCache):
        cache = open_cache(cache) if cache is not None else latest_training_cache()
    adapter = new_adapter(cache, config)
    rows = hold_out(cache.rows, cache.ids, config.val_fraction)
    name = re.sub(r"[^\w-]", "_", f"{cache.manifest.fields['dataset']['name']}-{config.side}")
    path = Path(out) if out is not None else next_run_path(Path("runs"), name)
    described = {"path": str(cache.path.resolve()), "identity": cache.manifest.identity}
    return _fit(Run.create(path, config, described), cache, adapter, config, rows=rows, device=where, report=report)


def resume(run: str | Path, *, device: str | None = None, report: Report = lambda metrics: None) -> TrainResult:
    """Continue a run after its last whole epoch, with its own options and cache.

    Raises:
        UserError: if the run cannot be read, or its cache is gone or another one now.
    """
    directory = Run(Path(run))
    config, described = directory.config()
    where = choose_device(device)
    cache = open_cache(described["path"])
    if cache.manifest.identity != described["identity"]:
        raise UserError(f"{described['path']!r} is not the cache that run {str(run)!r} began with: extract that again.")
    rows = hold_out(cache.rows, cache.ids, config.val_fraction)
    return _fit(directory, cache, new_adapter(cache, config), config, rows=rows, device=where, report=report)


def new_adapter(cache: ActivationCache, config: TrainConfig) -> Adapter:
    """Build an untrained adapter that fits a cache."""
    return Adapter(**_adapter_arguments(cache, config), tail=frozen_tail(cache))


def frozen_tail(cache: ActivationCache) -> FrozenTail:
    """Rebuild the backbone's frozen tail from a cache.

    Raises:
        UserError: if its config or tensors are not as the protocol says.
    """
    try:
        return FrozenTail(cache.manifest.tail, cache.tail_tensors())
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the frozen tail in {str(cache.path)!r} cannot be rebuilt ({error}): extract again."
        ) from error


def used_layers(cache: ActivationCache, config: TrainConfig) -> list[int]:
    """Block numbers that a run reads: the linear probe looks at the last only."""
    chosen = choose_layers(config.layers, cache.manifest.layers)
    return chosen[-1:] if config.side == "linear" else chosen


def evaluate_run(run: str | Path, *, cache: str | Path | None = None, device: str | None = None) -> dict[str, Any]:
    """Evaluate a finished run on a cache.

    Args:
        run: its directory.
        cache: by default the most recent complete cache of a held-out split of the same data set; failing that, the
            samples that the run held out of its own cache.
        device: by default the GPU where there is one.

    Returns:
        ``cache``, ``split``, ``samples``, ``loss``, ``top1``, ``top5``; also written to ``eval.json`` in the run.

    Raises:
        UserError: if adapter and cache do not belong together, or there is nothing to evaluate on.
    """
    directory = Path(run)
    adapter_config = load_adapter_config(directory)
    train_config, described = Run(directory).config()
    chosen = open_cache(cache) if cache is not None else _held_out_cache(adapter_config)
    if chosen is not None:
        rows, split = chosen.rows, chosen.manifest.fields["dataset"]["split"]
    else:
        chosen = open_cache(described["path"])
        rows, split = hold_out(chosen.rows, chosen.ids, train_config.val_fraction)[1], "held out of training"
        if not len(rows):
            raise UserError(f"run {str(run)!r} held nothing out and no test cache is known: pass --cache.")
    if problem := misfit(adapter_config, chosen):
        raise UserError(f"run {str(run)!r} does not fit cache {str(chosen.path)!r}: {problem}.")
    where = choose_device(device)
    adapter = load_adapter(directory, adapter_config, frozen_tail(chosen)).to(where)
    source = CachedSource(chosen, adapter_config["layers"], where)
    try:
        found = evaluate(
            adapter,
            source,
            rows,
            batch_size=train_config.batch_size,
            autocast=autocast_dtype(where, chosen.manifest.precision),
        )
    finally:
        source.close()
    result = {"cache": str(chosen.path), "split": split, "samples": len(rows), **found}
    (directory / "eval.json").write_text(json.dumps(result, indent=2))
    return result


def misfit(adapter_config: dict[str, Any], cache: ActivationCache) -> str:
    """Say in which fields an adapter and a cache do not belong together; empty where they do."""
    ours, theirs = adapter_config["cache"]["fields"], cache.manifest.fields
    wrong = differences({k: ours[k] for k in BELONG_TOGETHER}, {k: theirs[k] for k in BELONG_TOGETHER})
    if lacking := [layer for layer in adapter_config["layers"] if layer not in cache.manifest.layers]:
        wrong.append(f"layers ({lacking} are not cached)")
    if adapter_config["classes"] != cache.manifest.classes:
        wrong.append(f"classes ({len(adapter_config['classes'])} here, {len(cache.manifest.classes)} there)")
    return "; ".join(wrong)


def _fit(
    run: Run,
    cache: ActivationCache,
    adapter: Adapter,
    config: TrainConfig,
    *,
    rows: tuple[NDArray[np.int64], NDArray[np.int64]],
    device: torch.device,
    report: Report,
) -> TrainResult:
    keep_freed_memory()
    layers = used_layers(cache, config)
    source = CachedSource(cache, layers, device)
    try:
        fit(
            adapter,
            source,
            train_rows=rows[0],
            val_rows=rows[1],
            config=config,
            run=run,
            device=device,
            autocast=autocast_dtype(device, cache.manifest.precision),
            report=report,
        )
    finally:
        source.close()
        run.close()
    manifest = cache.manifest
    save_adapter(
        run.path,
        adapter,
        {
            "adapter": _adapter_arguments(cache, config),
            "layers": layers,
            "classes": manifest.classes,
            "cache": {"identity": manifest.identity, "fields": manifest.fields},
            "software": manifest.software,
        },
    )
    last = list(run.metrics())[-1]
    return TrainResult(run.path, last, adapter.parameter_counts(), adapter)


def _adapter_arguments(cache: ActivationCache, config: TrainConfig) -> dict[str, Any]:
    return {
        "side": config.side,
        "depth": len(used_layers(cache, config)),
        "tokens": cache.layout.tokens,
        "width": cache.layout.width,
        "rank": config.rank,
        "classes": len(cache.manifest.classes),
        "seed": config.seed,
    }


def _held_out_cache(adapter_config: dict[str, Any]) -> ActivationCache | None:
    name = adapter_config["cache"]["fields"]["dataset"]["name"]
    for path in known_stores():
        try:
            cache = open_cache(path)
        except UserError:
            continue
        dataset = cache.manifest.fields["dataset"]
        if dataset["name"] == name and dataset["split"] in HELD_OUT_SPLITS and not misfit(adapter_config, cache):
            return cache
    return None

"""The adapter of a run: built when it begins, and written with all that describes it when it ends."""

from pathlib import Path
from typing import Any

from losa_cache.apply.card import card
from losa_cache.cache.manifest import Manifest
from losa_cache.errors import UserError
from losa_cache.files import write_whole
from losa_cache.inputs_config import PRETRAINED
from losa_cache.points import ALL_LAYERS, EMBEDDING, tapped_points
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.adapter_file import load_adapter_config, save_adapter
from losa_cache.sidenet.adapter_folder import CARD, add_metrics, find_files, read_metrics
from losa_cache.sidenet.tail import FrozenTail
from losa_cache.tasks import Task, get_task
from losa_cache.train.config import TrainConfig
from losa_cache.train.run import Run
from losa_cache.train.training_data import TrainingData, used_layers, used_points

OWN = "held out of training"
"""The split of samples that a run held out of its own."""


def new_adapter(manifest: Manifest, tail: FrozenTail, config: TrainConfig) -> Adapter:
    """Build an untrained adapter for block outputs as a manifest describes them."""
    adapter = Adapter(**_adapter_arguments(manifest, config), tail=tail)
    adapter.begin(config.dropout)
    return adapter


def save_run(
    run: Run, adapter: Adapter, data: TrainingData, config: TrainConfig, probe: dict[str, float] | None
) -> None:
    """Write a finished run's adapter, what its last epoch measured on held-out samples, and a model card.

    ``probe`` is what ``losa_cache.train.loop.finish`` gave.

    Raises:
        UserError: if it cannot be written: there is no adapter then.
    """
    manifest = data.manifest
    save_adapter(
        run.path,
        adapter,
        {
            "run": run.digest(),
            "task": config.task,
            "adapter": _adapter_arguments(manifest, config),
            "layers": data.layers,
            "tap": manifest.fields["tap"],
            "start": EMBEDDING if config.reads_embedding else "output",
            "classes": manifest.classes,
            "cache": {"identity": manifest.identity, "fields": manifest.fields},
            "software": manifest.software,
            "pretrained": _weights_of(run, manifest) == PRETRAINED,
        }
        | ({} if probe is None else {"probe": probe}),
    )
    figures = _last_figures(run, data.task)
    name, samples = manifest.fields["dataset"]["name"], len(data.chosen.held_out)
    try:
        describe(run.path, figures and {"on": name, "split": OWN, "samples": samples, **figures})
    except OSError as error:
        raise UserError(
            f"{str(error.filename or run.path)!r} cannot be written ({error.strerror}): the adapter is there, but for "
            "what describes it; make room, or make it writable, and run losa-cache eval."
        ) from error


def describe(path: Path, measured: dict[str, Any] | None) -> None:
    """Write beside an adapter what was measured of it, and a model card; a card that somebody has edited stays.

    Args:
        path: of a run, or of an adapter's folder; of this version, not of an earlier one.
        measured: what ``losa_cache.sidenet.adapter_folder.add_metrics`` takes.

    Raises:
        OSError: if it cannot be written.
        UserError: if what is there was altered.
    """
    config, file = load_adapter_config(path), find_files(path).folder / CARD
    edited = file.exists() and file.read_text("utf-8", "replace") != card(config, read_metrics(path))
    if measured is not None:
        add_metrics(path, measured)
    if not edited:
        write_whole(file, card(config, read_metrics(path)).encode())


def _weights_of(run: Run, manifest: Manifest) -> str | None:
    """Say where the backbone's weights were from, as the options have it: of a cache, or of a run with the backbone."""
    options = manifest.options or run.config()[1]["online"] or {}
    return options.get("weights")


def _last_figures(run: Run, task: Task) -> dict[str, float] | None:
    """Give what the last epoch measured on held-out samples; ``None`` where nothing was held out."""
    *_, last = [{}, *run.metrics()]
    held_out = [metric for metric in task.metrics if metric.held_out in last]
    return {metric.name: last[metric.held_out] for metric in held_out} if held_out else None


def _adapter_arguments(manifest: Manifest, config: TrainConfig) -> dict[str, Any]:
    layers, grid = used_layers(manifest.layers, config), manifest.tokens["grid"]
    return {
        "side": config.side,
        "depth": 1 if config.spec.last_layer else len(tapped_points(manifest.fields["tap"], layers)),
        "tokens": manifest.tokens["total"],
        "width": manifest.width,
        "rank": config.rank,
        "classes": get_task(config.task).outputs(manifest.classes),
        "seed": config.seed,
        "grid": grid if len(grid) == 3 else None,  # of a video
    } | (
        {"head": ALL_LAYERS, "points": len(used_points(manifest.fields["tap"], manifest.layers, config))}
        if config.reads_all
        else {}
    )

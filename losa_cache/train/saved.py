"""The adapter of a run: built when it begins, and written with all that describes it when it ends."""

from pathlib import Path
from typing import Any

from losa_cache.cache.manifest import Manifest
from losa_cache.errors import UserError
from losa_cache.points import ALL_LAYERS, EMBEDDING, tapped_points
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.adapter_file import save_adapter
from losa_cache.sidenet.adapter_folder import add_metrics
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
    """Write a finished run's adapter, and what its last epoch measured on held-out samples.

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
        }
        | ({} if probe is None else {"probe": probe}),
    )
    if (figures := _last_figures(run, data.task)) is not None:
        name, samples = manifest.fields["dataset"]["name"], len(data.chosen.held_out)
        note_metrics(run.path, {"on": name, "split": OWN, "samples": samples, **figures})


def note_metrics(run: Path, entry: dict[str, Any]) -> None:
    """Write down beside a run's adapter what was measured of it (``losa_cache.sidenet.adapter_folder.add_metrics``).

    Raises:
        UserError: if it cannot be written.
    """
    try:
        add_metrics(run, entry)
    except OSError as error:
        raise UserError(
            f"{str(error.filename or run)!r} cannot be written ({error.strerror}): make room, or make it writable."
        ) from error


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

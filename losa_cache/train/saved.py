"""The adapter of a run: built when it begins, and written with all that describes it when it ends."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from losa_cache.apply.card import card
from losa_cache.cache.manifest import Manifest
from losa_cache.data.pixel_rules import DTYPE
from losa_cache.errors import UserError
from losa_cache.files import write_whole
from losa_cache.inputs_config import PRETRAINED
from losa_cache.points import ALL_LAYERS, EMBEDDING, tapped_points
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.adapter_file import load_adapter_config, rebuild, save_adapter
from losa_cache.sidenet.adapter_folder import CARD, add_metrics, find_files, read_metrics
from losa_cache.sidenet.build import build_adapter
from losa_cache.sidenet.tail import FrozenTail
from losa_cache.targets.target_set import TargetSet
from losa_cache.tasks import Task, get_task
from losa_cache.train.batch import Batch
from losa_cache.train.config import TrainConfig
from losa_cache.train.costs import backbone_macs
from losa_cache.train.evaluate import Scored, evaluate
from losa_cache.train.run import Run
from losa_cache.train.training_data import TrainingData, used_layers, used_points
from losa_cache.tuned.tuned import Model, Tuned, adapter_of

OWN = "held out of training"
"""The split of samples that a run held out of its own."""


def new_model(data: TrainingData, config: TrainConfig, *, copy: bool = True) -> Model:
    """Build what a run trains, on its device: an adapter, or one behind a backbone that a method changes.

    Args:
        data: to learn from.
        config: the options.
        copy: leave the backbone of ``data`` as it is.

    Raises:
        UserError: for sizes, or a method, that cannot be.
    """
    if config.trains is None:
        return new_adapter(data.manifest, data.tail, config, data.targets.names).to(data.device)
    from losa_cache.tuned.build import new_tuned

    assert data.backbone is not None, "a method without a backbone"
    options: dict[str, Any] = {"device": data.device, "copy": copy, "grad_checkpointing": config.grad_checkpointing}
    frozen = backbone_macs(data.backbone)  # before it is changed
    tuned = new_tuned(
        data.backbone, config.trains, _adapter_arguments(data.manifest, config, data.targets.names), **options
    )
    tuned.frozen_macs = frozen
    return tuned


def new_adapter(
    manifest: Manifest, tail: FrozenTail, config: TrainConfig, names: Sequence[str] | None = None
) -> Adapter:
    """Build an untrained adapter for block outputs as a manifest describes them.

    ``names`` are those of the target set that it learns; by default the classes of the cache's labels.
    """
    adapter = build_adapter(_adapter_arguments(manifest, config, names or manifest.classes), tail)
    adapter.begin(config.dropout)
    return adapter


def save_run(run: Run, model: Model, data: TrainingData, config: TrainConfig, probe: dict[str, float] | None) -> None:
    """Write a finished run's adapter, what its last epoch measured on held-out samples, and a model card.

    ``probe`` is what ``losa_cache.train.loop.finish`` gave.

    Raises:
        UserError: if it cannot be written: there is no adapter then.
    """
    manifest = data.manifest
    arguments = _adapter_arguments(manifest, config, data.targets.names)
    adapter, inside = adapter_of(model), {}
    if isinstance(model, Tuned):
        inside = model.inside()
        adapter = rebuild(adapter, {"adapter": arguments}, model.finished_tail(), tokens=arguments["tokens"])
    save_adapter(
        run.path,
        adapter,
        {
            "run": run.digest(),
            "task": config.task,
            "adapter": arguments,
            "layers": data.layers,
            "tap": manifest.fields["tap"],
            "start": EMBEDDING if config.reads_embedding else "output",
            "classes": list(data.targets.names),
            "targets": described(data.targets),
            "constants": dict(_concluded(model, data, config).constants),
            "cache": {"identity": manifest.identity, "fields": manifest.fields, "checked": _checked(run, manifest)},
            "software": manifest.software,
            "pretrained": _weights_of(run, manifest) == PRETRAINED,
        }
        | ({} if probe is None else {"probe": probe})
        | ({} if config.trains is None else {"method": asdict(config.trains)}),
        inside,
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
    return _image_options(run, manifest).get("weights")


def _checked(run: Run, manifest: Manifest) -> bool:
    """Tell whether pictures that hardly use their range were refused, as the default of ``--range`` has it."""
    return _image_options(run, manifest).get("range", DTYPE) is None


def _image_options(run: Run, manifest: Manifest) -> dict[str, Any]:
    """Give the options by which backbone and images were opened; none where they were given loaded."""
    return manifest.options or run.config()[1]["online"] or {}


def _last_figures(run: Run, task: Task) -> dict[str, float] | None:
    """Give what the last epoch measured on held-out samples; ``None`` where nothing was held out."""
    *_, last = [{}, *run.metrics()]
    held_out = [metric for metric in task.metrics if metric.held_out in last]
    return {metric.name: last[metric.held_out] for metric in held_out} if held_out else None


def _concluded(model: Model, data: TrainingData, config: TrainConfig) -> Task:
    """Give the task with what it takes from the held-out samples, if it takes something and there are some."""
    if not data.task.concludes or not len(data.chosen.held_out):
        return data.task
    predictions: list[Tensor] = []
    targets: list[Tensor] = []

    def keep(predicted: Tensor, batch: Batch, scored: Scored) -> None:
        predictions.append(predicted[0])
        targets.append(batch.labels)

    options: dict[str, Any] = {"batch_size": config.batch_size, "autocast": data.autocast, "clips": data.manifest.clips}
    evaluate(model, data.plain, data.chosen.held_out, task=data.task, keep=keep, **options)
    return data.task.concluded(torch.cat(predictions), torch.cat(targets))


def described(targets: TargetSet) -> dict[str, str]:
    """Say in an adapter's config which target set it learned."""
    return {"name": targets.name, "kind": targets.kind, "fingerprint": targets.fingerprint}


def _adapter_arguments(manifest: Manifest, config: TrainConfig, names: Sequence[str]) -> dict[str, Any]:
    layers, grid = used_layers(manifest.layers, config), manifest.tokens["grid"]
    return (
        {
            "side": config.side,
            "depth": 1 if config.spec.last_layer else len(tapped_points(manifest.fields["tap"], layers)),
            "tokens": manifest.tokens["total"],
            "width": manifest.width,
            "rank": config.chosen_rank,
            "classes": get_task(config.task).outputs(names),
            "seed": config.seed,
            "grid": grid if len(grid) == 3 else None,  # of a video
        }
        | (
            {"head": ALL_LAYERS, "points": len(used_points(manifest.fields["tap"], manifest.layers, config))}
            if config.reads_all
            else {}
        )
        | ({"dense": {"decoder": config.decoder, "grid": grid}} if config.dense else {})
    )

"""``train`` and ``resume``: train an adapter from a cache, or from images and their backbone."""

import logging
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from losa_cache.cache.identity import differences
from losa_cache.cache.location import Location
from losa_cache.cache.precision import get_precision
from losa_cache.cache.stage import stage_cache
from losa_cache.cache.store import ActivationCache, latest_training_cache, open_cache
from losa_cache.errors import UserError
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.options import lists_options
from losa_cache.points import LAST
from losa_cache.sidenet.adapter_folder import FOLDER
from losa_cache.train.cache_of_run import cache_of_run
from losa_cache.train.config import TrainConfig, idle, of_recipe
from losa_cache.train.diverged import DivergedError, blame, require_outputs
from losa_cache.train.learned import targets_of
from losa_cache.train.loop import Progress, Report, fit
from losa_cache.train.memory_check import require_memory
from losa_cache.train.online_config import OnlineConfig
from losa_cache.train.placement import Placement
from losa_cache.train.run import RUNS, Run, TakenError, next_run_path, require_place
from losa_cache.train.saved import described, new_model, save_run
from losa_cache.train.training_data import TrainingData, open_training_data, require_inside
from losa_cache.tuned.tuned import Model

if TYPE_CHECKING:
    from losa_cache.backbone import Backbone
    from losa_cache.data.samples import Samples


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """The result of a finished run.

    Attributes:
        run: its directory.
        metrics: metrics of the last epoch.
        parameters: numbers of trained parameters, ``{"side", "classifier"}``; of a method that trains inside the
            backbone ``{"backbone", "classifier"}``.
        samples: how many it trained on and held out, ``{"train", "held_out"}``.
        adapter: the trained adapter; of such a method with the changed backbone before it.
    """

    run: Path
    metrics: dict[str, Any]
    parameters: dict[str, int]
    samples: dict[str, int]
    adapter: Model


@lists_options(TrainConfig)
def train(
    cache: str | Location | ActivationCache | None = None,
    *,
    online: OnlineConfig | None = None,
    backbone: "Backbone | None" = None,
    dataset: "Samples | None" = None,
    config: TrainConfig | None = None,
    recipe: str = "default",
    out: str | Path | None = None,
    device: str | None = None,
    residency: str = "auto",
    stage: str | Path | None = None,
    report: Report = lambda metrics: None,
    progress: Progress = lambda epochs: None,
    staging: Progress = lambda share: None,
    beside: Mapping[str, bytes] | None = None,
    **options: Any,
) -> TrainResult:
    """Train a side network (or a linear probe) from a cache, from the backbone itself, or from both; or train inside
    the backbone by one of the methods that LoSA is compared with.

    The call sets the process's malloc to keep freed memory (``losa_cache.machine.allocator``).

    Args:
        cache: an opened cache, its path or its URL. Without ``online``, and for a mixed run, the default is the most
            recent complete cache that is not of a held-out split and has the tokens that the side network reads.
            Together with ``online`` it serves the held-out samples.
        online: run the backbone on every batch, or on a share of it.
        backbone, dataset: loaded ones, in place of those that ``online`` names.
        config: the options.
        recipe: one of ``losa_cache.train.config.RECIPES``, which overrides the options of ``config``.
        out: run directory; by default ``runs/<data set>-<side or method>-<n>``.
        device: by default the GPU if there is one.
        residency: where the activations are kept between epochs: ``device`` (GPU memory), ``memory`` (RAM), ``disk``
            (they are read anew in every epoch), or ``auto``, the fastest of these that holds them. With ``device`` and
            ``auto``, a part is kept in RAM if the GPU cannot hold all. Results do not depend on it.
        stage: copy the cache into this folder first, unless it is there, and train from the copy.
        report: is called with each epoch's metrics.
        progress: is called with the number of finished epochs, with their fraction, after every batch.
        staging: is called with the share of the cache that was copied.
        beside: content of more files for the run's directory, by name, such as how its options were chosen.
        options: fields of :class:`TrainConfig` that override those of ``config`` and ``recipe``.

    Raises:
        UserError: for options, a cache, images or a directory that cannot work.
        KeyboardInterrupt: at Ctrl-C, after a checkpoint.
    """
    config = replace(config or TrainConfig(), **of_recipe(recipe) | options)
    if config.method is not None and options.get("head", LAST) != LAST:
        raise idle("head", options["head"], config.method)
    require_place(out)
    placement = Placement.choose(device, residency)
    require_inside(config, online, cache)
    if cache is None and (online is None or online.share < 1):
        cache = latest_training_cache(all_tokens=config.reads_all_tokens or online is not None)
    if isinstance(cache, str | Location):
        cache = open_cache(cache)

    @contextmanager
    def created(data: TrainingData) -> Iterator[Run]:
        run = _create(out, config, origin_of(cache, online, data), data, beside or {})
        with run.owned():
            yield run

    return _trained(
        created,
        cache,
        online,
        config,
        placement,
        backbone=backbone,
        dataset=dataset,
        stage=stage,
        report=report,
        progress=progress,
        staging=staging,
    )


def _create(
    out: str | Path | None, config: TrainConfig, origin: dict[str, Any], data: TrainingData, beside: Mapping[str, bytes]
) -> Run:
    if out is not None:
        return Run.create(Path(out), config, origin, data.chosen.files, beside)
    name = re.sub(r"[^\w-]", "_", f"{data.manifest.fields['dataset']['name']}-{config.method or config.side}")
    while True:
        with suppress(TakenError):  # by a process that asked for the same name at the same time
            return Run.create(next_run_path(RUNS, name), config, origin, data.chosen.files, beside)


def resume(
    run: str | Path,
    *,
    backbone: "Backbone | None" = None,
    dataset: "Samples | None" = None,
    device: str | None = None,
    residency: str = "auto",
    stage: str | Path | None = None,
    report: Report = lambda metrics: None,
    progress: Progress = lambda epochs: None,
    staging: Progress = lambda share: None,
) -> TrainResult:
    """Continue a run at its next batch, with its own options, cache and images.

    Args:
        run: its directory.
        backbone, dataset: those that an online run was given as objects.
        device: by default the GPU where there is one.
        residency, stage, staging: as of :func:`train`.
        report: is given each epoch's metrics.
        progress: is given the epochs done, with their fraction, after every batch.

    Raises:
        UserError: if the run cannot be read, or what it learns from is gone or another one now.
        KeyboardInterrupt: at Ctrl-C, after a checkpoint.
    """
    directory = Run(Path(run))
    config, origin = directory.config()
    placement = Placement.choose(device, residency)
    cache = None if origin["cache"] is None else cache_of_run(run, origin)
    if cache is not None and origin["targets"] is not None:
        config = replace(config, targets=origin["targets"]["name"])  # others may have been added since
        _require_same_targets(run, cache, config, origin["targets"])
    with directory.owned():
        if len(list(directory.metrics())) >= config.epochs and (directory.path / FOLDER).exists():
            log.info("run %r is finished already: its adapter is written anew.", str(run))
        return _trained(
            lambda data: nullcontext(directory),
            cache,
            None if origin["online"] is None else OnlineConfig.from_json(origin["online"]),
            config,
            placement,
            backbone=backbone,
            dataset=dataset,
            stage=stage,
            report=report,
            progress=progress,
            staging=staging,
            check=lambda data: _require_same(directory, data, origin),
        )


def _trained(
    directory: Callable[[TrainingData], AbstractContextManager[Run]],
    cache: ActivationCache | None,
    online: OnlineConfig | None,
    config: TrainConfig,
    placement: Placement,
    *,
    backbone: "Backbone | None",
    dataset: "Samples | None",
    stage: str | Path | None,
    report: Report,
    progress: Progress,
    staging: Progress,
    check: Callable[[TrainingData], None] = lambda data: None,
) -> TrainResult:
    """Train a run from its start or its checkpoint (arguments as of :func:`train`).

    Args:
        directory: gives the run's directory, owned, once there is nothing left that could refuse the run.
        check: refuses what a run that goes on cannot learn from.
    """
    near = _staged(cache, stage, staging)
    with open_training_data(
        near, online, config, placement, passes=config.epochs, backbone=backbone, dataset=dataset
    ) as data:
        check(data)
        model = _ready_model(data, config, copy=backbone is not None)
        with directory(data) as run:
            log.info("run: %s.", run.path)
            _tell_samples(data)
            try:
                return _fit(run, data, model, config, report=report, progress=progress)
            except KeyboardInterrupt:
                log.warning("losa-cache train --resume %s goes on with this run.", shlex.quote(str(run.path)))
                raise


def _require_same_targets(
    run: str | Path, cache: ActivationCache, config: TrainConfig, learned: Mapping[str, str]
) -> None:
    """Refuse a cache whose target set is not the one that a run began with.

    Args:
        run: its directory.
        cache: that it learns from.
        config: its options.
        learned: what it began with, as its config has it.
    """
    name, place = learned["name"], str(cache.path)
    again = f"add that one again with losa-cache targets {shlex.quote(place)} --from FILE --name {name}"
    if name not in cache.target_kinds:
        raise UserError(f"the target set {name!r}, which run {str(run)!r} learns, was removed from {place!r}: {again}.")
    if cache.target_kinds[name] != learned["kind"] or described(targets_of(cache, config)) != learned:
        raise UserError(
            f"the target set {name!r} of {place!r} was replaced since run {str(run)!r} began: {again}, or train anew."
        )


def _require_same(run: Run, data: TrainingData, origin: dict[str, Any]) -> None:
    """Refuse training data that is not what a run began with; another device may compute in another dtype."""
    ours, theirs = data.manifest.fields | {"compute": None}, origin["fields"] | {"compute": None}
    if wrong := differences(ours, theirs, ("now", "when it began")):
        raise UserError(f"run {str(run.path)!r} began with other data: it differs in {'; '.join(wrong)}.")
    if origin["targets"] not in (None, described(data.targets)):
        name = origin["targets"]["name"]
        raise UserError(
            f"the target set {name!r} was replaced since run {str(run.path)!r} began: put that one back, or train anew."
        )


def _tell_samples(data: TrainingData) -> None:
    """Say what is learned of how many samples."""
    chosen = data.chosen
    log.info(
        "target set %r: %s samples to train on, %s held out.",
        *(data.targets.name, f"{len(chosen.train):,}", f"{len(chosen.held_out):,}"),
    )


def _staged(cache: ActivationCache | None, folder: str | Path | None, progress: Progress) -> ActivationCache | None:
    if folder is None:
        return cache
    if cache is None:
        raise UserError(f"--stage {str(folder)!r} copies a cache, and this run has none: leave it out.")
    return stage_cache(cache, folder, progress=progress)


def _ready_model(data: TrainingData, config: TrainConfig, *, copy: bool) -> Model:
    """Build what is trained on its device, and see that the device has room for a batch (``copy`` as of
    :func:`losa_cache.train.saved.new_model`).
    """
    keep_freed_memory()
    model, manifest = new_model(data, config, copy=copy), data.manifest
    shape: tuple[int, ...] = (len(data.points), manifest.tokens["total"], manifest.width)
    dtype = get_precision(manifest.precision).dtype
    if config.trains is not None and data.backbone is not None:
        shape, dtype = (1, *data.backbone.input.shape), torch.float32
    batch_size = min(config.batch_size, len(data.chosen.train))
    require_memory(model, shape, dtype, batch_size=batch_size, autocast=data.autocast)
    return model


def _fit(
    run: Run,
    data: TrainingData,
    model: Model,
    config: TrainConfig,
    *,
    report: Report,
    progress: Progress,
) -> TrainResult:
    manifest = data.manifest
    try:
        probe = fit(model, data, config=config, run=run, report=report, progress=progress)
        if not len(data.chosen.held_out):  # which would have shown it
            require_outputs(model, data, config)
    except DivergedError as error:
        if not manifest.non_finite:
            raise
        what, _, _ = str(error).partition(":")
        raise blame(what, manifest) from error
    except RuntimeError as error:  # torch has a class for a GPU's memory alone
        if "out of memory" not in str(error) and "allocate memory" not in str(error):
            raise
        raise UserError(
            f"{data.device} ran out of memory with batches of {config.batch_size}: --batch-size "
            f"{max(1, config.batch_size // 2)} takes half{_or_checkpoint(config)}."
        ) from error
    finally:
        run.close()
    save_run(run, model, data, config, probe)
    last = [{"epoch": config.epochs}, *run.metrics()][-1]
    samples = {"train": len(data.chosen.train), "held_out": len(data.chosen.held_out)}
    return TrainResult(run.path, last, model.parameter_counts(), samples, model)


def _or_checkpoint(config: TrainConfig) -> str:
    """Name what else takes less memory, where the backbone is trained."""
    return ", and --grad-checkpointing less" if config.trains and not config.grad_checkpointing else ""


def origin_of(cache: ActivationCache | None, online: OnlineConfig | None, data: TrainingData) -> dict[str, Any]:
    """Write down what a run learns from, for its ``config.json``."""
    return {
        "cache": None if cache is None else str(cache.path.resolve()),
        "online": None if online is None else online.to_json(),
        "fields": data.manifest.fields,
        "targets": described(data.targets),
    }

"""``evaluate_run``: a finished run's adapter to figures, on a cache or on images."""

import errno
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.cache.location import Location
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.errors import UserError
from losa_cache.files import without_nan, write_json
from losa_cache.folders import require_writable
from losa_cache.points import LAST
from losa_cache.report.evaluation import figures_of, flat, tables_of
from losa_cache.report.outcome import EXAMPLES, Outcome, OutcomeCollector
from losa_cache.sidenet.adapter_file import load_adapter, load_adapter_config, load_whole
from losa_cache.sidenet.adapter_folder import HUB, find_files, local_folder
from losa_cache.tasks import CLASSIFICATION, Task, get_task
from losa_cache.train.all_layers import unfit
from losa_cache.train.cache_of_run import cache_of_run
from losa_cache.train.compatible import misfit, misfit_of_cache, of_tokens, require_fit, target_name, trained_of
from losa_cache.train.config import SHUFFLE, TrainConfig
from losa_cache.train.diverged import DivergedError, blame
from losa_cache.train.evaluate import evaluate
from losa_cache.train.evaluation_groups import groups_to_report
from losa_cache.train.held_out_caches import caches_to_test
from losa_cache.train.loop import Progress
from losa_cache.train.online_config import OnlineConfig
from losa_cache.train.placement import Placement
from losa_cache.train.run import Run
from losa_cache.train.saved import OWN, describe
from losa_cache.train.training_data import TrainingData, open_training_data
from losa_cache.tuned.spec import Method
from losa_cache.tuned.tuned import Model, Tuned, adapter_of

if TYPE_CHECKING:
    from losa_cache.backbone import Backbone
    from losa_cache.data.samples import Samples

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """A run's adapter, evaluated.

    Attributes:
        figures: ``on`` (the cache, or the data set), ``split``, ``samples``, and the metrics of the run's task.
        manifest: of what it was evaluated on.
        outcome: the predictions, beside their targets.
        groups: number of each sample's group, from 0; ``None``: there are none.
        parameters: trained ones, ``{"side", "classifier"}``, or ``{"backbone", "classifier"}``.
        task: of the run.
    """

    figures: dict[str, Any]
    manifest: Manifest
    outcome: Outcome
    groups: NDArray[np.int64] | None
    parameters: dict[str, int]
    task: Task


def evaluate_run(
    run: str | Path,
    *,
    cache: str | Location | None = None,
    split: str | None = None,
    backbone: "Backbone | None" = None,
    dataset: "Samples | None" = None,
    device: str | None = None,
    group_by: str | None = None,
    report: str | Path | None = None,
    images: str | Path | None = None,
    progress: Progress = lambda share: None,
) -> dict[str, Any]:
    """Evaluate what a finished run has trained on plain images.

    Args:
        run: its directory; or an adapter by itself, its folder or ``hub:owner/name``, with ``cache``.
        cache: by default the most recent complete cache of a held-out split of the same data set; failing that, and for
            a method that trains inside the backbone, the samples that the run held out of its own.
        split: of an online run's data set, through the backbone, in place of a cache.
        backbone, dataset: those that an online run was given as objects; or, with ``split``, that split.
        device: by default the GPU where there is one.
        group_by: groups of the evaluated samples, as of ``TrainConfig.group_by``; by default those of the run.
        report: a folder for figures with intervals, tables and charts (:func:`losa_cache.report.write.write_report`).
        images: the data set's folder, from which a report of maps shows the images behind them.
        progress: is given the share done, after every batch.

    Returns:
        ``on`` (the cache, or the data set), ``split``, ``samples``, and the metrics of the run's task: ``loss``,
        ``top1``, ``top5`` and others; ``NAME_interval``, the 95 % interval of the metric that trials are chosen by,
        over samples or over groups; where there are groups, their number and ``group_NAME``, metrics of the mean
        prediction of each; and ``tables``, a line for each class, label or column. All of it is also written to
        ``eval.json`` in the run, and but for the tables beside the adapter.

    Raises:
        UserError: if adapter and data do not belong together, or there is nothing to evaluate on.
    """
    folder = local_folder(run)
    if report is not None:
        from losa_cache.sweep.report.drawing import require_matplotlib

        require_matplotlib()
        require_writable(Path(report).parent)
    elif images is not None:
        raise UserError(f"images is {str(images)!r}, but only a report shows images: name its folder with --report.")
    evaluation = evaluated(
        folder,
        cache=cache,
        split=split,
        backbone=backbone,
        dataset=dataset,
        device=device,
        group_by=group_by,
        images=None if images is None else Path(images),
        progress=progress,
    )
    task, outcome, groups = evaluation.task, evaluation.outcome, evaluation.groups
    figures = figures_of(task, outcome, evaluation.figures, groups, intervals=report is not None)
    details = task.details(outcome)
    about = {name: evaluation.figures[name] for name in ("on", "split", "samples")}
    about |= {} if groups is None else {"groups": int(groups.max()) + 1}
    result, tables = about | flat(figures), {"tables": tables_of(details)}
    if not str(run).startswith(HUB):
        _store(folder, result, tables, task)
    if report is not None:
        from losa_cache.report.write import write_report  # with jinja2, which only a report needs

        about |= {"adapter": folder.name, "backbone": evaluation.manifest.fields["backbone"]["name"]}
        about |= _costs(folder, evaluation.parameters)
        write_report(Path(report), about, figures, details, task=task)
    return result | tables


def evaluated(
    run: str | Path,
    *,
    cache: str | Location | None = None,
    split: str | None = None,
    backbone: "Backbone | None" = None,
    dataset: "Samples | None" = None,
    device: str | None = None,
    group_by: str | None = None,
    images: Path | None = None,
    progress: Progress = lambda share: None,
) -> Evaluated:
    """Evaluate as :func:`evaluate_run`, sample by sample, and write nothing."""
    directory = Path(run)
    adapter_config, config, origin = read_trained(directory)
    online = None if origin["online"] is None else OnlineConfig.from_json(origin["online"])
    if adapter_config.get("method") and online is None:
        raise UserError(
            f"adapter {str(run)!r} was trained inside the backbone ({trained_of(adapter_config)}): name the run that "
            "it is of, which knows its images, or use losa-cache predict."
        )
    chosen = open_cache(cache) if cache is not None else None
    if split is not None and (chosen is not None or online is None):
        raise UserError(
            f"split is {split!r}, but --split is for runs that were trained online: leave it out beside --cache, and "
            "for a run from a cache."
        )
    on_own_samples = chosen is None and split is None
    if on_own_samples:
        chosen, on_own_samples = _cache_of_run(run, adapter_config, config, origin)
    if chosen is not None:
        online = None
        require_fit(run, f"cache {str(chosen.path)!r}", misfit_of_cache(adapter_config, chosen))
    elif online is not None and split is not None:
        online = replace(online, split=split, limit=None, tap=adapter_config["cache"]["fields"]["tap"])
    learned = None if adapter_config.get("targets") is None else target_name(adapter_config)
    layers = config.layers if config.trains else adapter_config["layers"]
    config = replace(
        config, layers=layers, targets=learned, sampling=SHUFFLE, class_weights=None
    )  # of several target sets that the task could learn, it is the one that was learned
    task = get_task(config.task).restored(adapter_config.get("constants", {})).choosing(config.metric)
    if images is not None and not (task.dense and images.is_dir()):
        what = "which is no folder" if task.dense else f"but a report of the task {task.name!r} shows no images"
        raise UserError(f"images is {str(images)!r}, {what}: leave it out.")
    groups_of_run = config.group_by
    if not on_own_samples:
        config = replace(config, val_fraction=0, val_ids=None, limit=None, group_by=None)
    placement = Placement.choose(device)
    given: dict[str, Any] = {"backbone": backbone, "dataset": dataset, "task": task, "names": adapter_config["classes"]}
    with open_training_data(chosen, online, config, placement, **given) as data:
        manifest = data.manifest
        name = str(chosen.path) if chosen is not None else manifest.fields["dataset"]["name"]
        if chosen is None:
            require_fit(run, f"data set {name!r}", misfit(adapter_config, manifest, data.targets.names, fresh=True))
        samples = _judges(run, data, adapter_config) if on_own_samples else data.chosen.train
        model, parameters = _trained_model(directory, data, adapter_config)
        if on_own_samples and (probe := adapter_config.get("probe")) is not None:
            unfit(adapter_of(model), data, config, **probe)
        if group_by is not None and chosen is not None:  # refused before anything is computed
            groups_to_report(group_by, None, chosen, samples, chosen.sample_ids.take(samples))
        kept = OutcomeCollector(data.task, data.targets.names)
        metrics = evaluate(
            model,
            data.source,
            samples,
            task=data.task,
            batch_size=config.batch_size,
            autocast=data.autocast,
            clips=manifest.clips,
            progress=progress,
            keep=kept,
        )
    _require_number(metrics["loss"], f"the loss of {str(run)!r} on {name!r}", manifest)
    outcome = kept.outcome()
    if images is not None:
        from losa_cache.report.images import images_of  # with timm's transforms, which nothing else here takes

        outcome = replace(outcome, images=images_of(images, outcome.ids[:EXAMPLES], manifest))
    tested = OWN if on_own_samples else manifest.fields["dataset"]["split"]
    return Evaluated(
        figures={"on": name, "split": tested, "samples": len(samples), **metrics},
        manifest=manifest,
        outcome=outcome,
        groups=groups_to_report(group_by, groups_of_run, chosen, samples, outcome.ids),
        parameters=parameters,
        task=data.task,
    )


def _require_number(loss: float, what: str, manifest: Manifest) -> None:
    """Refuse a loss that is none: predictions that are no numbers would count as the first class.

    Raises:
        UserError: saying whether the training or the backbone is to blame.
    """
    if math.isfinite(loss):
        return
    if manifest.non_finite:
        raise blame(f"{what} is {loss}", manifest)
    raise DivergedError(f"{what} is {loss}, so its training has diverged: train anew with a lower --lr.")


def _trained_model(run: Path, data: TrainingData, adapter_config: dict[str, Any]) -> tuple[Model, dict[str, int]]:
    """Load what a run has trained onto the device of its data, and count the parameters that were trained."""
    own = of_tokens(adapter_config, data.manifest)
    if data.backbone is None or not adapter_config.get("method"):
        adapter = load_adapter(run, own, data.tail).to(data.device)
        return adapter, adapter.parameter_counts()
    from losa_cache.tuned.rebuild import trained_trunk

    method = Method(**adapter_config["method"])
    adapter, inside = load_whole(run, own)
    trunk = trained_trunk(data.backbone, method, own["adapter"], inside)
    counts = {"backbone": sum(value.numel() for value in inside.values())}
    counts["classifier"] = adapter.parameter_counts()["classifier"]
    return Tuned(trunk, adapter.to(data.device), method), counts


def _cache_of_run(
    run: str | Path, adapter_config: dict[str, Any], config: TrainConfig, origin: dict[str, Any]
) -> tuple[ActivationCache | None, bool]:
    """Choose what to evaluate a run on where nothing is named.

    Returns:
        a known test cache, and false; or the cache that the run was trained from, if it was, and true: the samples that
        it held out are to be taken.

    Raises:
        UserError: if it held nothing out.
    """
    known = caches_to_test(adapter_config, origin["cache"])
    if known.chosen is not None:
        return known.chosen, False
    if not config.val_fraction and config.val_ids is None:
        remedy = f"; {known.passed_over}" if known.passed_over else ": pass --cache"
        if adapter_config.get("method"):
            raise UserError(f"run {str(run)!r} held nothing out: name a split of its data set with --split.")
        raise UserError(f"run {str(run)!r} held nothing out and no test cache is known{remedy}.")
    if adapter_config.get("method"):
        log.info("the samples that the run held out are evaluated: --split names another split, such as test.")
    if known.passed_over:
        log.warning("the samples that the run held out of its own are evaluated: %s.", known.passed_over)
    return (None if origin["cache"] is None else cache_of_run(run, origin)), True


def _judges(run: str | Path, data: TrainingData, adapter_config: dict[str, Any]) -> NDArray[np.int64]:
    """Give the samples that a run held out of its own.

    Raises:
        UserError: if the target set was replaced since: the figures would be of something that nobody trained.
    """
    learned = adapter_config.get("targets")
    if learned is not None and learned["fingerprint"] != data.targets.fingerprint:
        raise UserError(
            f"the target set {learned['name']!r} is not the one that run {str(run)!r} learned: put that one back, or "
            "name a test cache with --cache."
        )
    return data.chosen.held_out


def read_trained(run: Path) -> tuple[dict[str, Any], TrainConfig, dict[str, Any]]:
    """Read the config of a finished run's adapter, the run's options, and what it was trained on.

    An adapter by itself knows the options that decide its outputs, and no more.

    Raises:
        UserError: if this is no finished run, or its files were altered or are not of one run.
    """
    adapter_config = load_adapter_config(run)
    if _is_alone(run):
        options = {name: adapter_config[name] for name in ("layers", "start", "task")}
        options["targets"] = target_name(adapter_config)
        own = adapter_config["adapter"]
        config = TrainConfig(side=own["side"], head=own.get("head", LAST), val_fraction=0, **options)
        return adapter_config, config, {"cache": None, "online": None}
    directory = Run(run)
    config, origin = directory.config()
    if adapter_config.get("run", directory.digest()) != directory.digest():
        raise UserError(f"the adapter in {str(run)!r} is of another run: put back the files that belong together.")
    if adapter_config.get("task", CLASSIFICATION) != config.task:
        raise UserError(f"the adapter in {str(run)!r} is of another task than the run: put back the original.")
    return adapter_config, config, origin


def _is_alone(folder: Path) -> bool:
    """Tell whether this is an adapter by itself, and no run."""
    files = find_files(folder)
    return files.stands_alone and files.folder == folder


def _costs(run: Path, parameters: dict[str, int]) -> dict[str, Any]:
    """Say what the adapter costs, as far as its run has told."""
    *_, last = [{}, *Run(run).metrics()]
    macs = {"a forward pass": last.get("inference_macs"), "the adapter": last.get("adapter_macs")}
    counted = {f"multiply-accumulates of {what}": value for what, value in macs.items() if isinstance(value, int)}
    return {"trained parameters": sum(parameters.values())} | counted


def _store(run: Path, result: dict[str, Any], tables: dict[str, Any], task: Task) -> None:
    """Write the result to the run and beside its adapter. Where nobody may write, a warning does: the caller has it."""
    path = run / "eval.json"
    try:
        if not _is_alone(run):
            write_json(path, without_nan(result | tables))
        if find_files(run).stands_alone:
            describe(run, result | {"on": Path(result["on"]).name})  # folders of this machine are nobody's business
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            log.warning("the result could not be stored in %r (%s).", str(path), error.strerror)
            return
        raise UserError(
            f"{str(path)!r} cannot be written ({error.strerror}): make room and run it again. It would say: "
            f"{task.say(result, 1)} on {result['samples']} samples."
        ) from error

"""``evaluate_run``: a finished run's adapter to figures, on a cache or on images."""

import errno
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.cache.identity import differences
from losa_cache.cache.location import Location
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.registry import known_stores
from losa_cache.cache.store import HELD_OUT_SPLITS, ActivationCache, open_cache
from losa_cache.errors import UserError
from losa_cache.files import without_nan, write_json
from losa_cache.folders import require_writable
from losa_cache.points import EMBEDDING, LAST
from losa_cache.report.evaluation import figures_of, flat, tables_of
from losa_cache.report.outcome import EXAMPLES, Outcome, OutcomeCollector
from losa_cache.sidenet.adapter_file import load_adapter, load_adapter_config
from losa_cache.sidenet.adapter_folder import HUB, find_files, local_folder
from losa_cache.sidenet.spec import SIDES
from losa_cache.targets.target_set import LABELS
from losa_cache.tasks import CLASSIFICATION, Task, get_task
from losa_cache.train.all_layers import unfit
from losa_cache.train.config import SHUFFLE, OnlineConfig, TrainConfig
from losa_cache.train.evaluate import evaluate
from losa_cache.train.evaluation_groups import groups_to_report
from losa_cache.train.loop import Progress
from losa_cache.train.placement import Placement
from losa_cache.train.run import Run
from losa_cache.train.saved import OWN, describe
from losa_cache.train.training_data import TrainingData, open_training_data

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
        parameters: trained ones, ``{"side", "classifier"}``.
        task: of the run.
    """

    figures: dict[str, Any]
    manifest: Manifest
    outcome: Outcome
    groups: NDArray[np.int64] | None
    parameters: dict[str, int]
    task: Task


# an adapter works on whatever agrees in these; data set, order and precision may differ
BELONG_TOGETHER = ("backbone", "input", "tap")


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
        cache: by default the most recent complete cache of a held-out split of the same data set; failing that, the
            samples that the run held out of its own.
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
    chosen = open_cache(cache) if cache is not None else None
    if split is not None and (chosen is not None or online is None):
        raise UserError(
            f"split is {split!r}, but --split is for runs that were trained online: leave it out beside --cache, and "
            "for a run from a cache."
        )
    if chosen is None and split is None:
        chosen = _held_out_cache(adapter_config, _place(_opened(origin["cache"])))
    on_own_samples = chosen is None and split is None
    if on_own_samples and origin["cache"] is not None:
        chosen = open_cache(origin["cache"])
    if on_own_samples and not config.val_fraction and config.val_ids is None:
        raise UserError(f"run {str(run)!r} held nothing out and no test cache is known: pass --cache.")
    if chosen is not None:
        online = None
        require_fit(run, f"cache {str(chosen.path)!r}", adapter_config, chosen.manifest)
    elif online is not None and split is not None:
        online = replace(online, split=split, limit=None, tap=adapter_config["cache"]["fields"]["tap"])
    config = replace(config, layers=adapter_config["layers"], sampling=SHUFFLE, class_weights=None)
    task = get_task(config.task).restored(adapter_config.get("constants", {})).choosing(config.metric)
    if images is not None and not (task.dense and images.is_dir()):
        what = "which is no folder" if task.dense else f"but a report of the task {task.name!r} shows no images"
        raise UserError(f"images is {str(images)!r}, {what}: leave it out.")
    groups_of_run = config.group_by
    if not on_own_samples:
        config = replace(config, val_fraction=0, val_ids=None, limit=None, group_by=None)
    placement = Placement.choose(device)
    with open_training_data(chosen, online, config, placement, backbone=backbone, dataset=dataset, task=task) as data:
        manifest = data.manifest
        name = str(chosen.path) if chosen is not None else manifest.fields["dataset"]["name"]
        if chosen is None:
            require_fit(run, f"data set {name!r}", adapter_config, manifest)
        samples = _judges(run, data, adapter_config) if on_own_samples else data.chosen.train
        adapter = load_adapter(directory, of_tokens(adapter_config, manifest), data.tail).to(data.device)
        if on_own_samples and (probe := adapter_config.get("probe")) is not None:
            unfit(adapter, data, config, **probe)
        if group_by is not None and chosen is not None:  # refused before anything is computed
            groups_to_report(group_by, None, chosen, samples, [chosen.sample_ids[sample] for sample in samples])
        kept = OutcomeCollector(data.task, data.targets.names)
        metrics = evaluate(
            adapter,
            data.source,
            samples,
            task=data.task,
            batch_size=config.batch_size,
            autocast=data.autocast,
            clips=manifest.clips,
            progress=progress,
            keep=kept,
        )
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
        parameters=adapter.parameter_counts(),
        task=data.task,
    )


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


def misfit(adapter_config: dict[str, Any], manifest: Manifest, *, labels: bool = True) -> str:
    """Say in which fields an adapter and block outputs do not belong together; empty where they do.

    ``labels`` says whether the labels count, too: an adapter predicts its own classes of whatever images.
    """
    wrong = apart(adapter_config["cache"]["fields"], manifest.fields)
    if lacking := [layer for layer in adapter_config["layers"] if layer not in manifest.layers]:
        wrong.append(f"layers ({lacking} are not cached)")
    if adapter_config.get("start") == EMBEDDING and EMBEDDING not in manifest.points:
        wrong.append("start (the embedding is not cached)")
    if labels:
        names = manifest.names_of(target_name(adapter_config))
        wrong += differences({"classes": adapter_config["classes"]}, {"classes": names})
    sizes = {"width": manifest.width}
    own = adapter_config["adapter"]
    if own.get("dense") or not SIDES[own["side"]].pooled_rows:  # those go with all tokens as with pooled rows
        sizes["tokens"] = manifest.tokens["total"]
    wrong += differences({name: adapter_config["adapter"][name] for name in sizes}, sizes)
    return "; ".join(wrong)


def target_name(adapter_config: Mapping[str, Any]) -> str:
    """Say which target set an adapter has learned; adapters of earlier versions learned the labels."""
    targets: dict[str, str] | None = adapter_config.get("targets")
    return LABELS if targets is None else targets["name"]


def apart(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Say in which fields of two identities their block outputs do not belong together.

    One data set is taken upright, or as stored, in both. Other data sets may have no orientation to follow.
    """
    same = ours["dataset"]["name"] == theirs["dataset"]["name"]
    compared = (*BELONG_TOGETHER, "orientation") if same else BELONG_TOGETHER
    return differences({k: ours.get(k) for k in compared}, {k: theirs.get(k) for k in compared})


def of_tokens(adapter_config: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """Give the config for as many rows as a point has here: all tokens, or pooled ones."""
    return adapter_config | {"adapter": adapter_config["adapter"] | {"tokens": manifest.tokens["total"]}}


def require_fit(
    run: str | Path, name: str, adapter_config: dict[str, Any], manifest: Manifest, *, labels: bool = True
) -> None:
    """Refuse block outputs that an adapter does not go with (arguments as of :func:`misfit`).

    Raises:
        UserError: naming the fields in which they differ.
    """
    if problem := misfit(adapter_config, manifest, labels=labels):
        raise UserError(f"run {str(run)!r} does not fit {name}: {problem}.")


def known_test_cache(run: Path, *, but: str | None = None) -> ActivationCache | None:
    """Find the most recent complete cache of a held-out split of a finished run's data set, but for one."""
    _, origin = Run(run).config()
    return _held_out_cache(load_adapter_config(run), _place(_opened(origin["cache"])), but=but)


def test_cache_for(manifest: Manifest, targets: str = LABELS) -> ActivationCache | None:
    """Find the most recent complete cache of a held-out split that an adapter from a cache could be tested on."""
    return _held_out_cache(_as_adapter(manifest, targets), _place(manifest))


def unfit_for_test(manifest: Manifest, test: Manifest, targets: str = LABELS) -> str:
    """Say in which fields another cache is no test of what was fitted to one; empty where it is."""
    return misfit(_as_adapter(manifest, targets), test)


def _as_adapter(manifest: Manifest, targets: str) -> dict[str, Any]:
    """Write down what a linear probe of a target set would say of itself, as far as it is held to other caches."""
    return {
        "cache": {"fields": manifest.fields},
        "layers": manifest.layers,
        "classes": manifest.names_of(targets),
        "targets": {"name": targets},
        "adapter": {"side": "linear", "width": manifest.width, "tokens": manifest.tokens["total"]},
    }


def of_same_images(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Say whether two identities are of one split of one data set: what is fitted to the one, the other cannot test."""
    return bool(ours["dataset"] == theirs["dataset"])


def _held_out_cache(
    adapter_config: dict[str, Any], place: tuple[Any, Any] | None, *, but: str | None = None
) -> ActivationCache | None:
    """Find the most recent one that fits and was not trained on; of the same folder of images, if there is one.

    Folders of images all have one name, and two of them may have the same classes.
    """
    ours, found = adapter_config["cache"]["fields"], None
    for path in known_stores():
        if but is not None and path == Path(but).resolve():
            continue
        try:
            cache = open_cache(path)
        except UserError:
            continue
        theirs = cache.manifest.fields
        tests = theirs["dataset"]["split"] in HELD_OUT_SPLITS and not of_same_images(ours, theirs)
        if ours["dataset"]["name"] != theirs["dataset"]["name"] or not tests or misfit(adapter_config, cache.manifest):
            continue
        if place is None or _place(cache.manifest) == place:
            return cache
        found = found or cache
    return found


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

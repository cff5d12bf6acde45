"""losa-cache: run a frozen vision backbone once, cache its block outputs, train LoSA side networks from the cache.

>>> import losa_cache as lc
>>> cache = lc.extract("vit_b", "cifar100")  # doctest: +SKIP
>>> result = lc.train(cache, rank=16)  # doctest: +SKIP
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from losa_cache.apply.adapted import AdaptedModel
    from losa_cache.apply.export.config import ExportConfig
    from losa_cache.apply.export.export import export
    from losa_cache.apply.hub import push
    from losa_cache.apply.predict.config import PredictConfig
    from losa_cache.apply.predict.predict import Predictions, predict
    from losa_cache.backbone import Backbone, load_backbone
    from losa_cache.cache.store import ActivationCache, open_cache
    from losa_cache.compare.compare import compare
    from losa_cache.data.load import load_samples
    from losa_cache.data.samples import Samples
    from losa_cache.data.survey import survey
    from losa_cache.data.survey_config import SurveyConfig
    from losa_cache.errors import UserError
    from losa_cache.extract.config import ExtractConfig, PlanConfig
    from losa_cache.extract.extract import extract
    from losa_cache.extract.plan_extraction import plan_extraction
    from losa_cache.extract.verify import verify_cache
    from losa_cache.probe.config import ProbeConfig
    from losa_cache.probe.probe import ProbeResult, probe
    from losa_cache.relocate.copy import copy_cache
    from losa_cache.relocate.move import move_cache
    from losa_cache.relocate.remove import remove_cache
    from losa_cache.remake.merge import merge
    from losa_cache.remake.transcode import transcode
    from losa_cache.sidenet.adapter import Adapter
    from losa_cache.sidenet.losa import LoSA
    from losa_cache.sidenet.losa_stack import LoSAStack
    from losa_cache.sidenet.stack import AdapterStack
    from losa_cache.sidenet.tail import FrozenTail
    from losa_cache.sweep.engine.auto import train_auto
    from losa_cache.sweep.engine.run import resume_sweep, sweep
    from losa_cache.targets.add import add_targets, remove_targets
    from losa_cache.targets.target_set import TargetSet
    from losa_cache.train.batch import Batch
    from losa_cache.train.batches import Batches, TensorBatch, batches
    from losa_cache.train.config import TrainConfig
    from losa_cache.train.evaluate_run import evaluate_run
    from losa_cache.train.online_config import OnlineConfig
    from losa_cache.train.stacked_adamw import StackedAdamW
    from losa_cache.train.train import TrainResult, resume, train
    from losa_cache.train.trained_adapter import TrainedAdapter, load_adapter

# Where the public names live. They are imported when first used: training must not load timm and its backbones.
_HOMES = {
    "ActivationCache": "losa_cache.cache.store",
    "AdaptedModel": "losa_cache.apply.adapted",
    "Adapter": "losa_cache.sidenet.adapter",
    "AdapterStack": "losa_cache.sidenet.stack",
    "Backbone": "losa_cache.backbone",
    "Batch": "losa_cache.train.batch",
    "Batches": "losa_cache.train.batches",
    "ExportConfig": "losa_cache.apply.export.config",
    "ExtractConfig": "losa_cache.extract.config",
    "FrozenTail": "losa_cache.sidenet.tail",
    "LoSA": "losa_cache.sidenet.losa",
    "LoSAStack": "losa_cache.sidenet.losa_stack",
    "OnlineConfig": "losa_cache.train.online_config",
    "PlanConfig": "losa_cache.extract.config",
    "PredictConfig": "losa_cache.apply.predict.config",
    "Predictions": "losa_cache.apply.predict.predict",
    "ProbeConfig": "losa_cache.probe.config",
    "ProbeResult": "losa_cache.probe.probe",
    "Samples": "losa_cache.data.samples",
    "StackedAdamW": "losa_cache.train.stacked_adamw",
    "SurveyConfig": "losa_cache.data.survey_config",
    "TargetSet": "losa_cache.targets.target_set",
    "TensorBatch": "losa_cache.train.batches",
    "TrainConfig": "losa_cache.train.config",
    "TrainResult": "losa_cache.train.train",
    "TrainedAdapter": "losa_cache.train.trained_adapter",
    "UserError": "losa_cache.errors",
    "add_targets": "losa_cache.targets.add",
    "batches": "losa_cache.train.batches",
    "compare": "losa_cache.compare.compare",
    "copy_cache": "losa_cache.relocate.copy",
    "evaluate_run": "losa_cache.train.evaluate_run",
    "export": "losa_cache.apply.export.export",
    "extract": "losa_cache.extract.extract",
    "load_adapter": "losa_cache.train.trained_adapter",
    "load_backbone": "losa_cache.backbone",
    "load_samples": "losa_cache.data.load",
    "merge": "losa_cache.remake.merge",
    "move_cache": "losa_cache.relocate.move",
    "open_cache": "losa_cache.cache.store",
    "plan_extraction": "losa_cache.extract.plan_extraction",
    "predict": "losa_cache.apply.predict.predict",
    "probe": "losa_cache.probe.probe",
    "push": "losa_cache.apply.hub",
    "remove_cache": "losa_cache.relocate.remove",
    "remove_targets": "losa_cache.targets.add",
    "resume": "losa_cache.train.train",
    "resume_sweep": "losa_cache.sweep.engine.run",
    "survey": "losa_cache.data.survey",
    "sweep": "losa_cache.sweep.engine.run",
    "train": "losa_cache.train.train",
    "train_auto": "losa_cache.sweep.engine.auto",
    "transcode": "losa_cache.remake.transcode",
    "verify_cache": "losa_cache.extract.verify",
}

__all__ = [
    "ActivationCache",
    "AdaptedModel",
    "Adapter",
    "AdapterStack",
    "Backbone",
    "Batch",
    "Batches",
    "ExportConfig",
    "ExtractConfig",
    "FrozenTail",
    "LoSA",
    "LoSAStack",
    "OnlineConfig",
    "PlanConfig",
    "PredictConfig",
    "Predictions",
    "ProbeConfig",
    "ProbeResult",
    "Samples",
    "StackedAdamW",
    "SurveyConfig",
    "TargetSet",
    "TensorBatch",
    "TrainConfig",
    "TrainResult",
    "TrainedAdapter",
    "UserError",
    "add_targets",
    "batches",
    "compare",
    "copy_cache",
    "evaluate_run",
    "export",
    "extract",
    "load_adapter",
    "load_backbone",
    "load_samples",
    "merge",
    "move_cache",
    "open_cache",
    "plan_extraction",
    "predict",
    "probe",
    "push",
    "remove_cache",
    "remove_targets",
    "resume",
    "resume_sweep",
    "survey",
    "sweep",
    "train",
    "train_auto",
    "transcode",
    "verify_cache",
]


__version__ = version("losa-cache")

# The packages compare/, extract/, probe/, sweep/ and train/ share their names with functions. An import binds a package
# to its parent once, when it is first loaded: load them now (they are empty), drop the names, and lc.extract stays a
# function.
for _package in ("compare", "extract", "probe", "sweep", "train"):
    import_module(f"{__name__}.{_package}")
    del globals()[_package]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__

from pathlib import Path
from typing import Any

from losa_cache.inputs_config import ImageConfig
from losa_cache.options import options_of
from losa_cache.pareto.config import ParetoConfig, stored
from losa_cache.pareto.plan import EXTRACT, next_job
from losa_cache.pareto.record import COST, TEST, Accuracy, Extraction, NoiseCost, Result, Study, Training, Work

ALL = (
    *("losa", "losa@4", "losa:online", "linear", "lst", "fusion", "attentive", "full"),
    *("last", "last:2", "last:3", "last:4", "last:5", "last:6", "last:7", "last:8"),
)


def images(**given: Any) -> dict[str, Any]:
    """Options of backbone and images, as the command line gives them."""
    found = {own.name: own.default for own in options_of(ImageConfig)}
    return found | {"backbone": "vit_digits", "dataset": "digits"} | given


def options(config: ParetoConfig | None = None, **given: Any) -> dict[str, Any]:
    """Options of a study."""
    others = {"cache": None, "test_cache": None, "device": None, "shape_only": False, "classes": None}
    return stored(images(), config or ParetoConfig()) | others | given


def made_up(number: int, total: int, **given: Any) -> Training:
    """Figures of a training: later methods cost more, and the accuracy rises and falls."""
    share = number / max(1, total - 1)
    found = {
        "images": "sha256:00ff",
        "epoch_seconds": 10 * 10**share,
        "images_per_second": 600 / 10 ** (2 * share),
        "peak_gb": 1 + 3 * share,
        "joules": None,
        "parameters": {"side": round(1000 * 10 ** (4 * share)), "classifier": 485},
        "macs": round(4.2e9 * (1 + 0.01 * share)),
        "val_top1": 90 - 20 * (share - 0.5) ** 2,
        "val_loss": 0.3,
    }
    return Training(**found | given)


def finished(study: Study, folder: Path = Path("study")) -> Study:
    """Do everything that is left, with made-up figures."""
    while (job := next_job(study, folder)) is not None:
        number = 0 if job.entry is None else study.methods.index(job.entry)
        result: Result = made_up(number, len(study.methods))
        if job.kind == EXTRACT:
            result = Extraction(1.5)
        elif job.kind == TEST:
            seed = int(job.name.split("seed-")[1].split("/")[0])
            result = Accuracy(result.val_top1 + 0.4 * seed - 3 * (number % 3 == 1), 448)
        elif job.kind == COST:
            counts = (sum(result.parameters.values()), result.parameters["classifier"]) if job.entry else ()
            result = NoiseCost(result.images_per_second, result.peak_gb, 4.2, *counts)
        study = study.ended(job.name, Work(result, seconds=20.0 + number))
    return study


def study(*methods: str, config: ParetoConfig | None = None, **given: Any) -> Study:
    """A study of which nothing is done."""
    return Study(options(config, **given), list(methods or ALL), "two cores")

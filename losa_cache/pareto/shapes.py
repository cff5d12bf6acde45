"""What a method costs on random weights and noise. A process of its own: ``python -m`` this module, which tells it.

Its argument is a JSON object of the ``entry`` and the options of the study. Without an entry the cost is that of an
extraction: the frozen backbone runs, and nothing is trained.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from losa_cache.__main__ import command
from losa_cache.children import begin_child

if TYPE_CHECKING:
    import torch

    from losa_cache.backbone import Backbone
    from losa_cache.pareto.entries import Entry
    from losa_cache.train.config import TrainConfig

SECONDS, MOST = 2.0, 50
"""Steps are timed until so many seconds have passed, or so many are done; there is one at least."""
WARM = 2
"""Steps before these on a GPU, where the first records a graph; on a CPU there is one."""


def main() -> None:
    """Measure what the argument says, and tell the fields of a ``Row``."""
    command(_run)


def _run() -> None:
    tell = begin_child()
    tell(measure(json.loads(sys.argv[1])))


def measure(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Measure a method.

    Returns:
        ``images_per_second``, ``peak_gb``, ``gmacs``, and of a method ``parameters`` and ``classifier``.

    Raises:
        UserError: for a backbone that is unknown, or cannot have the method.
    """
    from losa_cache.machine.device import choose_device
    from losa_cache.machine.memory import peak_memory
    from losa_cache.pareto.entries import parse_entry

    device = choose_device(wanted["device"])
    subject = _subject(None if wanted["entry"] is None else parse_entry(wanted["entry"]), wanted, device)
    rate = wanted["batch_size"] / _seconds(subject.step, device)
    return {
        "images_per_second": rate,
        "peak_gb": peak_memory(device) / 1e9,
        "gmacs": subject.macs() / 1e9,
        **subject.parameters,
    }


@dataclass(frozen=True)
class _Subject:
    """What is measured.

    Attributes:
        step: takes one batch.
        macs: counts the multiply-accumulates of a sample.
        parameters: numbers of those that are trained.
    """

    step: Callable[[], object]
    macs: Callable[[], int]
    parameters: dict[str, int]


def _subject(entry: "Entry | None", wanted: Mapping[str, Any], device: "torch.device") -> _Subject:
    if entry is not None and entry.cached:
        return _from_cache(entry, wanted, device)
    from losa_cache.train.costs import backbone_macs

    with device:  # which draws random weights itself: on a CPU those of a large backbone take minutes
        backbone = _backbone(wanted).to(device)
    if entry is None:
        points, compute = _block_points(backbone), backbone.compute_dtype(_precision(wanted))
        pixels = _noise(backbone, wanted, device)
        return _Subject(
            lambda: backbone.run(pixels, points, lambda at, value: None, compute=compute),
            lambda: backbone_macs(backbone),
            {},
        )
    return (_inside if entry.side is None else _beside)(entry, backbone, wanted, device)


def _from_cache(entry: "Entry", wanted: Mapping[str, Any], device: "torch.device") -> _Subject:
    """A side network on made-up outputs of blocks; of the backbone there is nothing but its shape."""
    import torch

    from losa_cache.cache.precision import get_precision
    from losa_cache.train.batch import Batch
    from losa_cache.train.costs import adapter_macs, backbone_macs

    with torch.device("meta"):
        backbone = _backbone(wanted)
    config = _config(entry, wanted)
    points = _points(backbone, config)
    adapter, step = _adapter(backbone, config, points, wanted, device)
    dtype, shape = get_precision(_precision(wanted)).dtype, (wanted["batch_size"], backbone.tokens, backbone.width)
    blocks = [torch.randn(shape, device=device, dtype=dtype) for _ in points]
    batch = Batch(blocks, _labels(wanted, device), [], fixed=True)
    return _Subject(
        lambda: step(batch),
        lambda: adapter_macs(adapter, len(points)) + backbone_macs(backbone),
        _counts(adapter.parameter_counts()),
    )


def _beside(entry: "Entry", backbone: "Backbone", wanted: Mapping[str, Any], device: "torch.device") -> _Subject:
    """A side network, and the frozen backbone in every step."""
    from losa_cache.cache.precision import get_precision
    from losa_cache.train.batch import Batch
    from losa_cache.train.costs import adapter_macs, backbone_macs
    from losa_cache.train.online import Rounding

    config, precision = _config(entry, wanted), _precision(wanted)
    points = _points(backbone, config)
    adapter, step = _adapter(backbone, config, points, wanted, device)
    pixels, labels = _noise(backbone, wanted, device), _labels(wanted, device)
    encoding = get_precision(precision).fit([], tokens=1, prefix=0).to(device)
    rounding, compute = Rounding.of(encoding, points, points), backbone.compute_dtype(precision)

    def both() -> None:
        step(Batch(rounding.blocks(backbone, pixels, compute=compute), labels, []))

    return _Subject(
        both,
        lambda: adapter_macs(adapter, len(points)) + backbone_macs(backbone),
        _counts(adapter.parameter_counts()),
    )


def _inside(entry: "Entry", backbone: "Backbone", wanted: Mapping[str, Any], device: "torch.device") -> _Subject:
    """A method that trains inside the backbone."""
    from losa_cache.train.batch import Batch
    from losa_cache.train.costs import adapter_macs, tuned_macs
    from losa_cache.train.loop import make_optimizer, make_step
    from losa_cache.train.placement import Placement
    from losa_cache.tuned.build import new_tuned
    from losa_cache.tuned.spec import parse_method

    assert entry.method is not None
    config, method = _config(entry, wanted), parse_method(entry.method, entry.rank)
    tuned = new_tuned(
        backbone,
        method,
        _arguments(backbone, config, [f"block.{backbone.depth}"], wanted),
        device=device,
        copy=False,
        grad_checkpointing=wanted["grad_checkpointing"],
    )
    autocast = Placement(device).autocast(_precision(wanted))
    tuned.train()
    step = make_step(tuned, make_optimizer(tuned, config), config, autocast=autocast)
    batch = Batch([_noise(backbone, wanted, device)], _labels(wanted, device), [])

    return _Subject(
        lambda: step(batch),
        lambda: adapter_macs(tuned.adapter, 1) + tuned_macs(tuned),
        _counts(tuned.parameter_counts()),
    )


def _backbone(wanted: Mapping[str, Any]) -> "Backbone":
    from losa_cache.backbone import load_backbone
    from losa_cache.inputs_config import RANDOM

    own = {name: wanted[name] for name in ("img_size", "frames", "stride", "inflation")}
    return load_backbone(wanted["backbone"], weights=RANDOM, **own)


def _config(entry: "Entry", wanted: Mapping[str, Any]) -> "TrainConfig":
    from losa_cache.train.config import TrainConfig, of_recipe

    named = {"side": entry.side} if entry.side is not None else {"method": entry.method}
    ranked = {} if entry.rank is None else {"rank": entry.rank}
    return TrainConfig(**of_recipe(wanted["recipe"]) | named | ranked | {"batch_size": wanted["batch_size"]})


def _block_points(backbone: "Backbone") -> list[str]:
    return [f"block.{number}" for number in range(1, backbone.depth + 1)]


def _points(backbone: "Backbone", config: "TrainConfig") -> list[str]:
    from losa_cache.train.training_data import used_points

    return used_points("block", list(range(1, backbone.depth + 1)), config)


def _arguments(
    backbone: "Backbone", config: "TrainConfig", points: list[str], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the arguments of the adapter that a run with these options has."""
    from losa_cache.points import ALL_LAYERS

    found = {
        "side": config.side,
        "depth": 1 if config.spec.last_layer else backbone.depth,
        "tokens": backbone.tokens,
        "width": backbone.width,
        "rank": config.chosen_rank,
        "classes": wanted["classes"],
        "grid": backbone.grid if len(backbone.grid) == 3 else None,
    }
    return found | ({"head": ALL_LAYERS, "points": len(points)} if config.reads_all else {})


def _adapter(
    backbone: "Backbone", config: "TrainConfig", points: list[str], wanted: Mapping[str, Any], device: "torch.device"
) -> tuple[Any, Callable[[Any], None]]:
    """Build a side network's adapter, whose tail has the shape of the backbone's alone, and its training step."""
    from losa_cache.sidenet.build import build_adapter
    from losa_cache.sidenet.tail import FrozenTail
    from losa_cache.train.loop import make_optimizer, make_step
    from losa_cache.train.placement import Placement

    adapter = build_adapter(_arguments(backbone, config, points, wanted), FrozenTail(backbone.tail.config))
    adapter.begin(config.dropout)
    adapter.to(device).train()
    autocast = Placement(device).autocast(_precision(wanted))
    return adapter, make_step(adapter, make_optimizer(adapter, config), config, autocast=autocast)


def _counts(parameters: Mapping[str, int]) -> dict[str, int]:
    return {"parameters": sum(parameters.values()), "classifier": parameters["classifier"]}


def _precision(wanted: Mapping[str, Any]) -> str:
    """Give the precision of values in memory: codes come to bfloat16."""
    return wanted["precision"] if wanted["precision"] in ("float32", "float16") else "bfloat16"


def _noise(backbone: "Backbone", wanted: Mapping[str, Any], device: "torch.device") -> "torch.Tensor":
    import torch

    return torch.randn(wanted["batch_size"], *backbone.input.shape, device=device)


def _labels(wanted: Mapping[str, Any], device: "torch.device") -> "torch.Tensor":
    import torch

    return torch.arange(wanted["batch_size"], device=device) % wanted["classes"]


def _seconds(step: Callable[[], object], device: "torch.device") -> float:
    """Give the mean time of a step."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(WARM if device.type == "cuda" else 1):
        step()
    wait()
    began, steps = perf_counter(), 0
    while steps == 0 or (perf_counter() - began < SECONDS and steps < MOST):
        step()
        steps += 1
        wait()
    return (perf_counter() - began) / steps


if __name__ == "__main__":
    main()

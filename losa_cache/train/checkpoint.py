"""Check that a checkpoint fits the run that it continues: nothing is missing, and every tensor has the right shape."""

import math
from typing import Any

import torch
from torch import Tensor

from losa_cache.outside import UnreadableError, fit
from losa_cache.sidenet.adapter_file import require_alike
from losa_cache.tuned.tuned import Model

PARTS = ("epoch", "passed", "adapter", "optimizer")
MOMENTS = ("exp_avg", "exp_avg_sq")
CHANGING, REQUIRED = ("lr",), ("params", "weight_decay")  # of an optimizer's options
SPARE = 2**26  # bytes of a checkpoint beside its tensors


def largest_size(adapter: Model) -> int:
    """Give the largest size in bytes that a checkpoint of an adapter can have."""
    return SPARE + 4 * sum(value.nbytes for value in adapter.trained_state().values())


def restore(
    state: dict[str, Any], adapter: Model, optimizer: torch.optim.Optimizer, *, epochs: int, steps: int
) -> tuple[int, dict[str, Any]]:
    """Set adapter and optimizer to a checkpoint.

    Args:
        state: the checkpoint; it is not trusted.
        adapter, optimizer: as they were at the start of the run.
        epochs: number of epochs of the run.
        steps: number of steps of an epoch.

    Returns:
        the number of finished epochs, and the arguments of ``EpochProgress``.

    Raises:
        UnreadableError: naming what is missing or does not fit; then nothing was changed.
    """
    if missing := [name for name in PARTS if name not in state]:
        raise UnreadableError(f"it lacks {', '.join(missing)}")
    epoch = fit(state["epoch"], int)
    if not 0 <= epoch <= epochs:
        raise UnreadableError(f"it stands after epoch {epoch} of {epochs}")
    passed = _passed(state["passed"], steps)
    _require_tensors(state["adapter"], adapter.trained_state())
    begun = bool(epoch or passed["steps"])
    _require_optimizer(state["optimizer"], optimizer, begun=begun)
    adapter.load_state_dict(state["adapter"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    return epoch, passed


def _passed(given: Any, steps: int) -> dict[str, Any]:
    passed = fit(given, dict[str, Any])
    if passed.keys() != {"steps", "loss", "seconds", "spent"}:
        raise UnreadableError(f"passed holds {', '.join(sorted(passed))}")
    if not 0 <= fit(passed["steps"], int) <= steps:
        raise UnreadableError(f"it stands after step {passed['steps']} of {steps} in its epoch")
    loss = passed["loss"]
    if not isinstance(loss, Tensor) or loss.shape != () or loss.dtype != torch.float64:
        raise UnreadableError("the loss of its epoch is no number")
    if not all(
        math.isfinite(value)
        for value in (fit(passed["seconds"], float), *fit(passed["spent"], dict[str, float]).values())
    ):
        raise UnreadableError("a time in it is no number")
    return passed


def _require_tensors(given: Any, wanted: dict[str, Tensor], what: str = "adapter") -> None:
    """Refuse tensors of other names, shapes or dtypes than required."""
    if not isinstance(given, dict) or not all(isinstance(value, Tensor) for value in given.values()):
        raise UnreadableError(f"its {what} is not made of tensors")
    if missing := wanted.keys() - given.keys():
        raise UnreadableError(
            f"it lacks {len(missing)} tensor{'' if len(missing) == 1 else 's'} of the {what}, the first {min(missing)}"
        )
    if surprises := given.keys() - wanted.keys():
        raise UnreadableError(f"it holds {min(map(str, surprises))}, which the {what} of this run does not have")
    for name, value in wanted.items():
        require_alike(given[name], value, name, f"in the {what} of this run")


def _require_optimizer(given: Any, optimizer: torch.optim.Optimizer, *, begun: bool) -> None:
    """Refuse the state of another optimizer; an optimizer before its first step has no state."""
    wanted = optimizer.state_dict()
    if not isinstance(given, dict) or given.keys() != wanted.keys():
        raise UnreadableError("its optimizer is not made of state and param_groups")
    groups, expected = given["param_groups"], wanted["param_groups"]
    if (
        not isinstance(groups, list)
        or len(groups) != len(expected)
        or not all(isinstance(group, dict) for group in groups)
    ):
        raise UnreadableError(f"its optimizer does not have {len(expected)} groups of parameters")
    for group, wanted_group in zip(groups, expected, strict=True):
        for name in wanted_group.keys() - CHANGING:
            if name in group and _same(group[name], wanted_group[name]):
                continue
            if name in group or name in REQUIRED:  # versions of torch differ in the others
                raise UnreadableError(f"{name} of its optimizer is not that of this run")
        fit(group.get("lr"), float)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = given["state"]
    if not isinstance(state, dict) or set(state) != (set(range(len(parameters))) if begun else set()):
        raise UnreadableError("its optimizer lacks the state of some parameters")
    for place, parameter in enumerate(parameters) if begun else ():
        wanted_state = {name: parameter.detach() for name in MOMENTS} | {"step": torch.zeros((), dtype=torch.float32)}
        _require_tensors(state[place], wanted_state, f"optimizer's state of parameter {place}")


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other

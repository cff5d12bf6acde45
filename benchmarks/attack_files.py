"""Malformed files of runs: configs, metrics, checkpoints, adapters."""

import json
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from attack_inputs import CONTENTS, make, tried
from attack_runner import Case, Done, Step, copy
from attack_world import World, run_difference

Json = dict[str, Any]


def put(*path: str, value: Any) -> Callable[[Json], Any]:
    def change(content: Json) -> None:
        for name in path[:-1]:
            content = content[name]
        content[path[-1]] = value

    return change


def drop(*path: str) -> Callable[[Json], Any]:
    def change(content: Json) -> None:
        for name in path[:-1]:
            content = content[name]
        content.pop(path[-1], None)

    return change


ODD: dict[str, Any] = {
    "null": None,
    "text": "x",
    "a list": [1, 2],
    "an object": {"a": 1},
    "NaN": float("nan"),
    "infinity": float("inf"),
    "-1": -1,
    "1e15": 10**15,
    "a half": 0.5,
    "true": True,
}


def odd_values(turn: int) -> dict[str, Any]:
    """Give every other value, beginning with another one each turn."""
    return dict(list(ODD.items())[turn % 2 :: 2])


TRAINED = ("rank", "epochs", "lr", "batch_size", "layers", "side", "seed", "val_ids", "sampling", "clip_grad", "start")


def cases(world: World) -> Iterator[Case]:
    """All malformed files."""
    yield from _configs(world)
    yield from _adapters(world)
    yield from _checkpoints(world)


def edited(file: Path, change: Callable[[Json], Any]) -> None:
    content = json.loads(file.read_text())
    changed = change(content)
    file.write_text(json.dumps(content if changed is None or not isinstance(changed, list) else changed, indent=2))


def _configs(world: World) -> Iterator[Case]:
    """A run's ``config.json``, to be resumed; and its adapter's, to be evaluated."""
    half, run = world.stopped, world.finished
    whole, figures = world.whole, world.figures
    resume = ("train", "--resume", half, "--device", "cpu")
    changes: dict[str, Callable[[Json], Any]] = {}
    for turn, option in enumerate(TRAINED):
        for what, value in odd_values(turn).items():
            changes[f"train.{option} is {what}"] = put("train", option, value=value)
    for name in ("train", "cache", "online", "fields"):
        changes[f"no {name}"] = drop(name)
        changes[f"{name} is a number"] = put(name, value=3)
    changes["one more option"] = put("train", "surprise", value=1)
    changes["a cache that is not there"] = put("cache", value="/nowhere/x.zarr")
    changes["a cache with escapes"] = put("cache", value="/nowhere/\x1b[31mx.zarr")
    changes["a cache that is a URL"] = put("cache", value="http://127.0.0.1:9/x.zarr")
    for what, change in changes.items():

        def resumed(what: str = what, change: Callable[[Json], Any] = change) -> list[Step]:
            world.fresh("half", "train")
            edited(half / "config.json", change)
            return [tried(world, *resume, what=what, right=lambda done: run_difference(half, whole))]

        yield Case("inputs", "run: config.json", f"inputs/files/config.json: {what}", resumed)
    for file, command, folder in (
        ("config.json", resume, "half"),
        ("metrics.jsonl", resume, "half"),
        ("checkpoint.pt", resume, "half"),
        ("adapter/config.json", world.evaluation(), "run"),
        ("adapter/adapter.safetensors", world.evaluation(), "run"),
        ("config.json", world.evaluation(), "run"),
        ("eval.json", world.evaluation(), "run"),
    ):
        for what in CONTENTS:
            if what == "a file's inside":
                continue

            def replaced(
                file: str = file, command: tuple[str | Path, ...] = command, folder: str = folder, what: str = what
            ) -> list[Step]:
                world.fresh(folder, "train", "test")
                make(world.folder / folder / file, what)

                def right(done: Done) -> str | None:
                    if folder == "half":
                        return run_difference(half, whole)
                    found = {**done.json, "on": ""}
                    return None if found == {**figures, "on": ""} else f"{found} in place of {figures}"

                return [tried(world, *command, what=f"{what} as {file}", right=right)]

            yield Case("inputs", f"run: {file}", f"inputs/files/{folder} {file}: {what}", replaced)
    adapters: dict[str, Callable[[Json], Any]] = {}
    for turn, name in enumerate(json.loads((world.kept / "run" / "run" / "adapter/config.json").read_text())):
        adapters[f"no {name}"] = drop(name)
        for what, value in odd_values(turn).items():
            adapters[f"{name} is {what}"] = put(name, value=value)
    for turn, name in enumerate(("rank", "depth", "width", "tokens", "classes", "side", "seed", "grid")):
        for what, value in odd_values(turn).items():
            adapters[f"adapter.{name} is {what}"] = put("adapter", name, value=value)
    adapters["classes in another order"] = put("classes", value=["b", "a", "c"])
    adapters["layers in another order"] = lambda content: content.update(layers=content["layers"][::-1])
    for what, change in adapters.items():

        def evaluated(what: str = what, change: Callable[[Json], Any] = change) -> list[Step]:
            world.fresh("run", "test")
            edited(run / "adapter/config.json", change)
            right = partial(_same_figures, figures)
            return [tried(world, *world.evaluation(), what=what, right=right)]

        yield Case("inputs", "run: adapter/config.json", f"inputs/files/adapter/config.json: {what}", evaluated)


def _same_figures(figures: Json, done: Done) -> str | None:
    found = {**done.json, "on": ""}
    return None if found == {**figures, "on": ""} else f"{found} in place of {figures}"[:300]


def _adapters(world: World) -> Iterator[Case]:
    """An adapter's tensors: other values, values that are not finite, and tensors that lack."""
    run, figures = world.finished, world.figures

    def save(change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
        def call() -> None:
            from safetensors.torch import load_file, save_file

            state = load_file(str(run / "adapter/adapter.safetensors"))
            change(state)
            save_file(
                {name: tensor.contiguous() for name, tensor in state.items()}, str(run / "adapter/adapter.safetensors")
            )

        return call

    def all_values(value: float) -> Callable[[dict[str, Any]], Any]:
        return lambda state: [tensor.fill_(value) for tensor in state.values()]

    def one_value(value: float) -> Callable[[dict[str, Any]], Any]:
        return lambda state: next(iter(state.values())).view(-1)[:1].fill_(value)

    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "one NaN": one_value(float("nan")),
        "one infinity": one_value(float("inf")),
        "all NaN": all_values(float("nan")),
        "all zero": all_values(0.0),
        "a tensor less": lambda state: state.pop(next(iter(state))),
        "no tensors": lambda state: state.clear(),
        "a tensor more": lambda state: state.update(more=next(iter(state.values())).clone()),
        "a tensor of another shape": lambda state: state.update({k: v[:-1] for k, v in list(state.items())[:1]}),
        "tensors in float16": lambda state: state.update({k: v.half() for k, v in state.items()}),
        "tensors in integers": lambda state: state.update({k: v.long() for k, v in state.items()}),
        "two tensors exchanged": _exchange,
    }
    for what, change in changes.items():

        def tensors(what: str = what, change: Callable[[dict[str, Any]], Any] = change) -> list[Step]:
            world.fresh("run", "test")
            world.must("(edit)", call=save(change))
            return [tried(world, *world.evaluation(), what=what, right=partial(_same_figures, figures))]

        yield Case("inputs", "run: adapter/adapter.safetensors", f"inputs/files/adapter: {what}", tensors)
    heads = {
        "a header of 2^63 bytes": struct.pack("<Q", 2**63),
        "a header longer than the file": struct.pack("<Q", 10**6) + b"{}",
        "a header that is not JSON": struct.pack("<Q", 4) + b"abcd",
        "a deep header": struct.pack("<Q", 200_000) + b"[" * 200_000,
        "offsets beyond the file": _header({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        "a shape of 1e18": _header({"x": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 16]}}),
    }
    for what, raw in heads.items():

        def headed(what: str = what, raw: bytes = raw) -> list[Step]:
            world.fresh("run", "test")
            (run / "adapter/adapter.safetensors").write_bytes(raw)
            return [tried(world, *world.evaluation(), what=what)]

        yield Case("inputs", "run: adapter/adapter.safetensors", f"inputs/files/adapter: {what}", headed)


def _header(content: Json) -> bytes:
    raw = json.dumps(content).encode()
    return struct.pack("<Q", len(raw)) + raw


def _exchange(state: dict[str, Any]) -> None:
    pairs = [(one, two) for one in state for two in state if one < two and state[one].shape == state[two].shape]
    one, two = pairs[0]
    state[one], state[two] = state[two], state[one]


class Evil:
    """Prints a line where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code was run",))


def _checkpoints(world: World) -> Iterator[Case]:
    """A checkpoint that torch reads, but that is not one of this run."""
    half, whole = world.stopped, world.whole
    resume = ("train", "--resume", half, "--device", "cpu")

    def save(change: Callable[[Any], Any]) -> Callable[[], None]:
        def call() -> None:
            import torch

            state = torch.load(half / "checkpoint.pt", weights_only=True)
            torch.save(change(state), half / "checkpoint.pt")

        return call

    def with_(*path: Any, value: Any) -> Callable[[Any], Any]:
        def change(state: Any) -> Any:
            inner = state
            for name in path[:-1]:
                inner = inner[name]
            inner[path[-1]] = value(inner.get(path[-1])) if callable(value) else value
            return state

        return change

    def without(*path: Any) -> Callable[[Any], Any]:
        def change(state: Any) -> Any:
            inner = state
            for name in path[:-1]:
                inner = inner[name]
            inner.pop(path[-1])
            return state

        return change

    changes: dict[str, Callable[[Any], Any]] = {
        "written again as it is": lambda state: state,
        "a list": lambda state: [1, 2],
        "a number": lambda state: 3,
        "nothing in it": lambda state: {},
        "code in it": lambda state: {**state, "evil": Evil()},
        **{f"no {name}": without(name) for name in ("epoch", "passed", "adapter", "optimizer")},
        **{f"epoch is {what}": with_("epoch", value=value) for what, value in ODD.items()},
        "epoch is one more": with_("epoch", value=lambda epoch: epoch + 1),
        "epoch is one less": with_("epoch", value=lambda epoch: epoch - 1),
        **{f"passed.steps is {what}": with_("passed", "steps", value=value) for what, value in ODD.items()},
        "passed.steps is one more": with_("passed", "steps", value=lambda steps: steps + 1),
        "passed.loss is NaN": with_("passed", "loss", value=lambda loss: loss * float("nan")),
        "passed has more": with_("passed", "surprise", value=1),
        "no tensors in adapter": with_("adapter", value={}),
        "a tensor less in adapter": lambda state: (state["adapter"].pop(next(iter(state["adapter"]))), state)[1],
        "a tensor more in adapter": with_("adapter", "more", value=1),
        "NaN in adapter": lambda state: (next(iter(state["adapter"].values())).view(-1)[:1].fill_(float("nan")), state)[
            1
        ],
        "another shape in adapter": _reshaped,
        "float16 in adapter": lambda state: {**state, "adapter": {k: v.half() for k, v in state["adapter"].items()}},
        "no state in optimizer": with_("optimizer", "state", value={}),
        "no groups in optimizer": with_("optimizer", "param_groups", value=[]),
        "optimizer is text": with_("optimizer", value="x"),
        "NaN in optimizer": lambda state: (state["optimizer"]["state"][0]["exp_avg"].fill_(float("nan")), state)[1],
        "another rate in optimizer": lambda state: (state["optimizer"]["param_groups"][0].update(betas=(0, 0)), state)[
            1
        ],
    }
    for what, change in changes.items():

        def resumed(what: str = what, change: Callable[[Any], Any] = change) -> list[Step]:
            world.fresh("half", "train")
            world.must("(edit)", call=save(change))
            step = tried(world, *resume, what=what, right=lambda done: ran_code(done) or run_difference(half, whole))
            return [step]

        yield Case("inputs", "run: checkpoint.pt", f"inputs/files/checkpoint: {what}", resumed)
    for name in ("files", "whole"):
        other = name

        def of_another(other: str = other) -> list[Step]:
            world.fresh("half", "run", "train")
            copy(world.run / "checkpoint.pt", half / "checkpoint.pt")
            if other == "whole":
                copy(world.run / "config.json", half / "config.json")
            return [
                tried(world, *resume, what="checkpoint of another run", right=lambda done: run_difference(half, whole))
            ]

        if name == "files":
            yield Case("inputs", "run: checkpoint.pt", "inputs/files/checkpoint: of another run", of_another)


def _reshaped(state: Any) -> Any:
    name, tensor = next((n, t) for n, t in state["adapter"].items() if t.ndim == 2)
    state["adapter"][name] = tensor[:-1].clone()
    return state


def ran_code(done: Done) -> str | None:
    return "code in a file was run" if "code was run" in done.out + done.err else None

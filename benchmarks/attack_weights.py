"""Weights that are none or another trunk's, and sweeps whose files are malformed."""

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attack_files import Evil, Json, drop, edited, odd_values, put, ran_code
from attack_inputs import CONTENTS, clear, make, tried
from attack_runner import OTHER, SENTENCE, Case, Done, Step, digest, remove
from attack_world import EXTRACT, World, sweep_difference


def cases(world: World) -> Iterator[Case]:
    """All weights and sweeps."""
    yield from _weights(world)
    yield from _sweeps(world)


def _weights(world: World) -> Iterator[Case]:  # noqa: PLR0915
    """Weights that are none, or another trunk's; and those that are right in odd wrappings."""
    store, data, odd = world.folder / "tried.zarr", world.data, world.folder / "odd"
    from losa_cache.backbone.names import DIGITS_WEIGHTS

    own = Path(DIGITS_WEIGHTS)

    def save(change: Callable[[dict[str, Any]], Any], file: Path) -> Callable[[], None]:
        def call() -> None:
            import numpy as np
            import torch
            from safetensors.torch import load_file, save_file

            state = load_file(str(own))
            changed = change(state)
            if file.suffix == ".safetensors":
                save_file({name: tensor.contiguous() for name, tensor in changed.items()}, str(file))
            elif file.suffix == ".npz":
                np.savez(str(file), **{name: tensor.numpy() for name, tensor in changed.items()})
            else:
                torch.save(changed, file)

        return call

    def layer_scale(state: dict[str, Any]) -> Any:
        width = state["norm.weight"]
        return state | {f"blocks.{n}.ls{k}.gamma": width.clone() * 0.1 for n in range(8) for k in (1, 2)}

    def more_blocks(state: dict[str, Any]) -> Any:
        last = {name: tensor for name, tensor in state.items() if name.startswith("blocks.7.")}
        more = {name.replace("blocks.7.", f"blocks.{n}."): t.clone() for n in (8, 9) for name, t in last.items()}
        return state | more

    def one(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Any]:
        return lambda state: state | {name: change(state[name])}

    right_ones = {
        "as it is": lambda state: state,
        "with a classifier": lambda state: (
            state | {"head.weight": state["norm.weight"][None].clone(), "head.bias": state["norm.bias"][:1].clone()}
        ),
    }
    wrapped = {
        "in state_dict": lambda state: {"state_dict": state},
        "in model": lambda state: {"model": state},
        "with module. in front": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        "with student.backbone. in front": lambda state: {f"student.backbone.{n}": t for n, t in state.items()},
        "beside an epoch": lambda state: {"state_dict": state, "epoch": 3},
    }
    wrong = {
        "LayerScale": layer_scale,
        "two blocks more": more_blocks,
        "a block less": lambda state: {name: t for name, t in state.items() if not name.startswith("blocks.7.")},
        "no norm": lambda state: {name: t for name, t in state.items() if not name.startswith("norm.")},
        "registers": lambda state: state | {"reg_token": state["cls_token"].clone()},
        "a norm before the blocks": lambda state: state | {"norm_pre.weight": state["norm.weight"].clone()},
        "norms of queries and keys": lambda state: (
            state | {f"blocks.{n}.attn.q_norm.weight": state["norm.weight"][:32].clone() for n in range(8)}
        ),
        "another width": one("norm.weight", lambda tensor: tensor[:-1]),
        "a NaN": one("norm.weight", lambda tensor: tensor * float("nan")),
        "an infinity": one("blocks.0.norm1.weight", lambda tensor: tensor + float("inf")),
        "integers": one("norm.weight", lambda tensor: tensor.long()),
        "complex numbers": one("norm.weight", lambda tensor: tensor.to_dense() + 0j),
        "nothing of a trunk": lambda state: {"head.weight": state["norm.weight"]},
        "no tensors": lambda state: {},
    }
    pickled = {
        "a list": lambda state: [1, 2],
        "a number": lambda state: 3,
        "code": lambda state: {**state, "evil": Evil()},
        "text for a tensor": lambda state: {**state, "norm.weight": "x"},
        "a whole module": lambda state: _module(),
    }
    weighed: list[Any] = []

    def attempt(file: Path, what: str, right: bool, may_refuse: bool = True) -> list[Step]:
        if not weighed:
            world.must("extract", *EXTRACT[1:], "--data-dir", data, "--out", store, "--limit", "8")
            weighed.append(_activations(store))
            clear(world)
        command = (*EXTRACT, "--data-dir", data, "--out", store, "--limit", "8", "--weights", file)

        def same(done: Done) -> str | None:
            if (ran := ran_code(done)) or right:
                return ran or (None if _activations(store) == weighed[0] else "the activations differ")
            return f"is accepted: {done.err.strip()[-200:]}"

        return [tried(world, *command, what=what, right=same, may_refuse=may_refuse)]

    for ending in ("safetensors", "pth", "npz"):
        groups = [(right_ones, True), (wrong, False), *([(wrapped, True), (pickled, False)] if ending == "pth" else [])]
        for group, right in groups:
            for what, change in group.items():
                file = odd.with_suffix(f".{ending}")

                def loaded(
                    file: Path = file, what: str = what, change: Any = change, right: bool = right
                ) -> list[Step]:
                    clear(world)
                    remove(file)
                    made = world.runner.run("(make)", call=save(change, file))
                    if made.code != 0:
                        return []
                    refuses = not right or file.suffix == ".npz" or "student" in what
                    return attempt(file, what, right, may_refuse=refuses)

                yield Case("inputs", "weights", f"inputs/weights/{ending}: {what}", loaded)
        for what in ("empty", "an LFS pointer", "a web page", "random bytes", "deep JSON", "zero bytes"):
            file = odd.with_suffix(f".{ending}")

            def instead(file: Path = file, what: str = what) -> list[Step]:
                clear(world)
                make(file, what)
                steps = attempt(file, what, False)
                word = {"an LFS pointer": "LFS", "a web page": "web page"}.get(what)
                if word and steps[0].outcome == SENTENCE and word not in steps[0].detail:
                    return [Step(steps[0].command, OTHER, f"does not call it {what}: {steps[0].detail}")]
                return steps

            yield Case("inputs", "weights", f"inputs/weights/{ending}: {what}", instead)
    for share in (0.1, 0.5, 0.99):
        for ending in ("safetensors", "pth"):

            def cut(share: float = share, ending: str = ending) -> list[Step]:
                clear(world)
                file = odd.with_suffix(f".{ending}")
                remove(file)
                world.must("(make)", call=save(lambda state: state, file))
                raw = file.read_bytes()
                file.write_bytes(raw[: int(share * len(raw))])
                return attempt(file, f"cut at {share}", False)

            yield Case("inputs", "weights", f"inputs/weights/{ending}: cut at {share}", cut)

    def zipped() -> list[Step]:
        clear(world)
        file = odd.with_suffix(".pth")
        raw = io.BytesIO()
        with zipfile.ZipFile(raw, "w") as archive:
            archive.writestr("readme.txt", "no weights")
        file.write_bytes(raw.getvalue())
        return attempt(file, "another archive", False)

    yield Case("inputs", "weights", "inputs/weights/pth: another archive", zipped)


def _module() -> Any:
    import torch

    return torch.nn.Linear(2, 2)


def _activations(store: Path) -> dict[str, str]:
    """Hash what a cache holds, whatever its identity."""
    return {path.name: digest(path) for path in sorted((store / "activations" / "block").glob("c.*"))}


def _sweeps(world: World) -> Iterator[Case]:
    """A sweep's own files."""
    wanted, folder = world.swept, world.folder / "sweep"
    resume = ("sweep", "--resume", folder, "--device", "cpu")
    changes: dict[str, Callable[[Json], Any]] = {}
    for name in (
        "cache",
        "space",
        "base",
        "sampler",
        "pruner",
        "trials",
        "concurrent",
        "storage",
        "test_cache",
        "retrain",
    ):
        changes[f"no {name}"] = drop(name)
        for what, value in odd_values(len(name)).items():
            changes[f"{name} is {what}"] = put(name, value=value)
    changes["ranks of text"] = put("space", "rank", value=["x"])
    changes["a range that is none"] = put("space", "rank", value={"low": 4, "high": 2})
    changes["no values"] = put("space", "rank", value=[])
    changes["an option that nobody knows"] = put("space", "surprise", value=[1, 2])
    for what, change in changes.items():

        def resumed(what: str = what, change: Callable[[Json], Any] = change) -> list[Step]:
            world.fresh("sweep", "train", "test")
            (folder / "record.json").unlink()
            edited(folder / "sweep.json", change)
            return [tried(world, *resume, what=what, right=lambda done: sweep_difference(folder, wanted))]

        yield Case("inputs", "sweep: sweep.json", f"inputs/weights/sweep.json: {what}", resumed)
    for file in ("sweep.json", "record.json", "study.db"):
        for what in CONTENTS:
            if what in ("a file's inside", "nothing"):
                continue

            def replaced(file: str = file, what: str = what) -> list[Step]:
                world.fresh("sweep", "train", "test")
                if file != "record.json":
                    (folder / "record.json").unlink()
                make(folder / file, what)
                return [tried(world, *resume, what=what, right=lambda done: sweep_difference(folder, wanted))]

            yield Case("inputs", f"sweep: {file}", f"inputs/weights/sweep {file}: {what}", replaced)

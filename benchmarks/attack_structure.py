"""Structural attacks: every checksum is valid, but bytes lie in the wrong place; and what is no file at all."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
from attack_flips import read, repaired
from attack_runner import Case, Step, copy, judge, remove, shown
from attack_world import World, pictures, run_difference

ROOT = Path(__file__).parents[1]
Change = Callable[["Store"], None]


@dataclass(frozen=True)
class Store:
    """A cache's files, by what they are."""

    world: World
    name: str = "train"

    @property
    def path(self) -> Path:
        """The store."""
        return self.world.folder / f"{self.name}.zarr"

    @property
    def receipts(self) -> Path:
        """The folder beside it."""
        return self.path.with_name(self.path.name + ".receipts")

    def shard(self, number: int) -> Path:
        """A shard's file."""
        return self.path / "activations" / "block" / f"c.{number}.0.0.0"

    def beside(self, number: int) -> list[Path]:
        """All that the receipts hold of one shard, its receipt first."""
        found = sorted(self.receipts.glob(f"{number:06d}*"))
        return sorted(found, key=lambda path: path.name != f"{number:06d}.json")

    def folders(self, *, both: bool) -> list[Path]:
        """The store, and with ``both`` the copy of its core."""
        return [self.path, self.receipts / "core"] if both else [self.path]

    def pristine(self, part: str = "") -> Path:
        """Where the undisturbed copy lies."""
        return self.world.kept / self.name / self.path.name / part

    def edit(self, change: Callable[[dict[str, Any]], None], name: str = "zarr.json", *, both: bool = False) -> None:
        """Change a JSON file; where it is the root's, its identity is made to agree."""
        for folder in self.folders(both=both):
            content = json.loads((folder / name).read_text())
            change(content["attributes"]["losa_cache"] if name == "zarr.json" else content)
            if name == "zarr.json" and "fields" in content["attributes"]["losa_cache"]:
                own = content["attributes"]["losa_cache"]
                canonical = {"protocol": own["protocol"], **own["fields"]}
                text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
                own["identity"] = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
            (folder / name).write_text(json.dumps(content, indent=2))

    def rewrite(self, array: str, change: Callable[[Any], Any], *, both: bool = False) -> None:
        """Write an array anew, with its own codecs and valid checksums."""

        def call() -> None:
            import zarr
            from zarr.codecs import Crc32cCodec, ZstdCodec

            for folder in self.folders(both=both):
                group = zarr.open_group(str(folder), mode="r+")
                values = change(group[array][...])  # type: ignore[index]
                del group[array]
                with zarr.config.set({"array.write_empty_chunks": True}):
                    group.create_array(array, data=values, compressors=[ZstdCodec(level=3), Crc32cCodec()])

        self.world.must("(rewrite)", call=call)


def _swap(first: Path, second: Path) -> None:
    aside = first.with_name(first.name + ".aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def _swap_shards(store: Store, *, receipts: str = "none", files: bool = True) -> None:
    if files:
        _swap(store.shard(1), store.shard(4))
    for one, other in zip(store.beside(1), store.beside(4), strict=True):
        if receipts == "all" or ((receipts == "receipt") == (one.suffix == ".json") and receipts != "none"):
            _swap(one, other)


def _shard_of(other: str, number: int, target: int, store: Store, *, receipts: bool = False) -> None:
    theirs = Store(store.world, other)
    copy(theirs.shard(number), store.shard(target))
    if receipts:
        for file in theirs.beside(number):
            copy(file, store.receipts / file.name.replace(f"{number:06d}", f"{target:06d}"))


def _all_shards(store: Store, *, receipts: bool) -> None:
    for number in range(len(list(store.shard(0).parent.glob("c.*")))):
        _shard_of("other", number, number, store, receipts=receipts)


def _chunk_of(other: str, part: str, store: Store, *, both: bool) -> None:
    theirs = Store(store.world, other)
    for mine, source in zip(store.folders(both=both), theirs.folders(both=both), strict=True):
        for file in sorted((source / part).rglob("*")):
            if file.is_file():
                copy(file, mine / file.relative_to(source))


def _tail(store: Store, *, both: bool) -> None:
    for folder in store.folders(both=both):
        _swap(folder / "tail" / "norm.bias" / "c" / "0", folder / "tail" / "norm.weight" / "c" / "0")


def _rows(store: Store, *, index: bool, data: bool) -> None:
    """Exchange the first two rows of a shard: their bytes, their entries in the index (its checksum is made anew)."""
    raw = bytearray(store.shard(2).read_bytes())
    entries = (len(raw) - 4) // 16
    count = next(n for n in range(1, 65) if int.from_bytes(raw[-4 - 16 * n :][:8], "little") == 0)
    assert count < entries
    start = len(raw) - 4 - 16 * count
    half = 16 * (count // 4)  # of four rows
    first, size = int.from_bytes(raw[start : start + 8], "little"), int.from_bytes(raw[start + half :][:8], "little")
    if data:
        raw[first : first + size], raw[size : 2 * size] = raw[size : 2 * size], raw[first : first + size]
    if index:
        raw[start : start + half], raw[start + half : start + 2 * half] = (
            raw[start + half : start + 2 * half],
            raw[start : start + half],
        )
        raw[-4:] = google_crc32c.value(bytes(raw[start:-4])).to_bytes(4, "little")
    store.shard(2).write_bytes(raw)


def _cut(part: Callable[[Store], Path], by: int | float, store: Store) -> None:
    file = part(store)
    raw = file.read_bytes()
    file.write_bytes(raw + bytes(by) if isinstance(by, int) and by > 0 else raw[: int(len(raw) * by)] if by else b"")


def _in_place_of(part: Callable[[Store], Path], what: str, store: Store) -> None:
    file = part(store)
    aside = store.world.folder / "aside"
    copy(file, aside)
    remove(file)
    if what == "fifo":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    elif what == "device":
        file.symlink_to("/dev/zero")
    elif what == "dangling link":
        file.symlink_to(store.world.folder / "nowhere")
    elif what == "link to itself":
        file.symlink_to(file)
    elif what == "link to the same bytes":
        file.symlink_to(aside)
    elif what == "link to another shard":
        file.symlink_to(Store(store.world, "other").shard(1))
    elif what == "nothing":
        pass
    elif what == "deep JSON":
        file.write_text("[" * 100_000 + "]" * 100_000)
    elif what == "UTF-16":
        file.write_bytes(aside.read_text().encode("utf-16"))
    elif what == "a byte order mark":
        file.write_bytes(b"\xef\xbb\xbf" + aside.read_bytes())
    elif what == "other JSON":
        file.write_text("[1, 2, 3]")


PARTS: dict[str, Callable[[Store], Path]] = {
    "a shard": lambda store: store.shard(3),
    "the labels": lambda store: store.path / "labels" / "c" / "0",
    "the sample ids": lambda store: store.path / "sample_ids" / "c" / "0" / "0",
    "a tensor of the tail": lambda store: store.path / "tail" / "norm.bias" / "c" / "0",
    "zarr.json": lambda store: store.path / "zarr.json",
    "zarr.json of the labels": lambda store: store.path / "labels" / "zarr.json",
    "zarr.json of the activations": lambda store: store.path / "activations" / "block" / "zarr.json",
    "a receipt": lambda store: store.receipts / "000003.json",
    "files.json": lambda store: store.receipts / "core" / "files.json",
    "the copy's zarr.json": lambda store: store.receipts / "core" / "zarr.json",
    "all receipts": lambda store: store.receipts,
    "the copy": lambda store: store.receipts / "core",
}
FIELDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "classes in another order": lambda own: own.update(classes=own["classes"][::-1]),
    "a class less": lambda own: own.update(classes=own["classes"][:-1]),
    "a class more": lambda own: own.update(classes=[*own["classes"], "d"]),
    "class names as text": lambda own: own.update(classes="abc"),
    "two class tokens": lambda own: own["tail"].update(class_tokens=2),
    "pooling by average": lambda own: own["tail"].update(pool="avg"),
    "another eps": lambda own: own["tail"]["norm"].update(eps=1.0),
    "no prefix": lambda own: own["tokens"].update(prefix=0),
    "tokens in another grid": lambda own: own["tokens"].update(grid=[4, 16]),
    "tokens of a video": lambda own: own["tokens"].update(grid=[2, 4, 8]),
    "half the tokens": lambda own: own["tokens"].update(total=33),
    "1e15 tokens": lambda own: own["tokens"].update(total=10**15),
    "width as text": lambda own: own.update(width="96"),
    "half the width": lambda own: own.update(width=48),
    "another depth": lambda own: own.update(depth=7),
    "precision float16": lambda own: own["fields"].update(precision="float16"),
    "precision int8": lambda own: own["fields"].update(precision="int8"),
    "a layer twice": lambda own: own["fields"].update(layers=[1, 2, 3, 4, 5, 6, 8, 8]),
    "layers in another order": lambda own: own["fields"].update(layers=[2, 1, 3, 4, 5, 6, 7, 8]),
    "other layers": lambda own: own["fields"].update(layers=[2, 3, 4, 5, 6, 7, 8, 9]),
    "layers as text": lambda own: own["fields"].update(layers="12345678"),
    "a layer less": lambda own: own["fields"].update(layers=[1, 2, 3, 4, 5, 6, 8]),
    "two views": lambda own: own["fields"]["views"].update(count=2),
    "views as text": lambda own: own["fields"]["views"].update(count="1"),
    "half a view": lambda own: own["fields"]["views"].update(count=1.5),
    "clips": lambda own: own["fields"]["views"].update(count=2, clips=2),
    "another tap": lambda own: own["fields"].update(tap="mlp"),
    "a tap that leads away": lambda own: own["fields"].update(tap="../../other.zarr/activations/block"),
    "an embedding": lambda own: own["fields"].update(embedding=True),
    "another data set": lambda own: own["fields"]["dataset"].update(name="flowers"),
    "a test split": lambda own: own["fields"]["dataset"].update(split="test"),
    "other weights": lambda own: own["fields"]["backbone"].update(weights="sha256:0"),
    "another mean": lambda own: own["fields"]["input"].update(mean=[0.0, 0.0, 0.0]),
    "another compute": lambda own: own["fields"].update(compute="float32"),
    "incomplete": lambda own: own.update(complete=False),
    "rows skipped": lambda own: own.update(skipped=[{"row": 3, "id": "x", "reason": "y"}]),
    "rows skipped that are not there": lambda own: own.update(skipped=[{"row": 10**9, "id": "x", "reason": "y"}]),
    "skipped as numbers": lambda own: own.update(skipped=[3]),
    "protocol 3": lambda own: own.update(protocol=3),
    "protocol as text": lambda own: own.update(protocol="4"),
    "no fields": lambda own: own.pop("fields"),
    "no tail": lambda own: own.pop("tail"),
    "one more attribute": lambda own: own.update(surprise=1),
    "compressed": lambda own: own["encoding"].update(compressed=0.5),
}
ARRAYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "labels as float64": ("labels", lambda values: values.astype("float64")),
    "labels as int32": ("labels", lambda values: values.astype("int32")),
    "labels in another order": ("labels", lambda values: values[::-1].copy()),
    "labels beyond the classes": ("labels", lambda values: values + 1),
    "labels of skipped samples": ("labels", lambda values: values - 1),
    "labels as a column": ("labels", lambda values: values[:, None]),
    "fewer labels": ("labels", lambda values: values[:-1]),
    "no labels": ("labels", lambda values: values[:0]),
    "sample ids in another order": ("sample_ids", lambda values: values[::-1].copy()),
    "sample ids all alike": ("sample_ids", lambda values: values[:1].repeat(len(values), 0)),
    "sample ids that are not UTF-8": ("sample_ids", lambda values: values | 0x80),
    "fewer sample ids": ("sample_ids", lambda values: values[:-1]),
    "a tail of other values": ("tail/norm.weight", lambda values: values * 2),
    "a tail that is not finite": ("tail/norm.weight", lambda values: values * float("nan")),
    "a tail in float16": ("tail/norm.weight", lambda values: values.astype("float16")),
    "a tail of another width": ("tail/norm.weight", lambda values: values[:-1]),
}
SHAPES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "fewer rows": lambda array: array.update(shape=[20, *array["shape"][1:]]),
    "more rows": lambda array: array.update(shape=[28, *array["shape"][1:]]),
    "1e15 rows": lambda array: array.update(shape=[10**15, *array["shape"][1:]]),
    "rows as text": lambda array: array.update(shape=["24", *array["shape"][1:]]),
    "shards of other shape": lambda array: array["chunk_grid"]["configuration"].update(
        chunk_shape=[8, *array["shape"][1:]]
    ),
    "another data type": lambda array: array.update(data_type="int16"),
    "another fill value": lambda array: array.update(fill_value=0),
    "other codecs": lambda array: array.update(codecs=[{"name": "bytes", "configuration": {"endian": "little"}}]),
    "another separator": lambda array: array["chunk_key_encoding"]["configuration"].update(separator="/"),
    "another precision": lambda array: array.get("attributes", {}).update(dtype="float16"),
}


def attacks() -> Iterator[tuple[str, Change, bool]]:  # noqa: PLR0912
    """Give all attacks on a cache: name, what it does, and whether it does no harm."""
    yield "shards exchanged", partial(_swap_shards), False
    yield "shards exchanged with all that is said of them", partial(_swap_shards, receipts="all"), False
    yield "shards exchanged with their receipts alone", partial(_swap_shards, receipts="receipt"), False
    yield "shards exchanged with all but their receipts", partial(_swap_shards, receipts="others"), False
    yield "receipts exchanged", partial(_swap_shards, receipts="receipt", files=False), False
    yield "a shard in another's place", partial(_shard_of, "train", 0, 3), False
    yield "a shard in another's place, with its receipt", partial(_shard_of, "train", 0, 3, receipts=True), False
    for other in ("other", "seeded"):
        yield f"a shard of {other}", partial(_shard_of, other, 2, 2), False
        yield f"a shard of {other} with its receipt", partial(_shard_of, other, 2, 2, receipts=True), False
    yield "all shards of another cache", partial(_all_shards, receipts=False), False
    yield "all shards of another cache with their receipts", partial(_all_shards, receipts=True), False
    yield (
        "the receipts of another cache",
        lambda store: copy(Store(store.world, "other").receipts, store.receipts),
        False,
    )
    for both in (False, True):
        end = " and its copy" if both else ""
        for part in ("labels", "sample_ids", "tail"):
            if part != "tail":
                yield f"{part} of another cache in the store{end}", partial(_chunk_of, "other", part, both=both), False
        yield f"tensors of the tail exchanged in the store{end}", partial(_tail, both=both), False
        yield f"the root's zarr.json of another cache in the store{end}", partial(_chunk_file, both=both), False
        for name, change in FIELDS.items():
            yield f"{name} in the store{end}", partial(Store.edit, change=change, both=both), False
        for name, (array, values) in ARRAYS.items():
            yield f"{name} in the store{end}", partial(Store.rewrite, array=array, change=values, both=both), False
        for name, change in SHAPES.items():
            file = "activations/block/zarr.json"
            yield f"{name} in the store{end}", partial(Store.edit, change=change, name=file, both=both), False
    for index, data, name in ((True, False, "entries of the index"), (False, True, "bytes"), (True, True, "both")):
        yield f"rows exchanged in a shard: {name}", partial(_rows, index=index, data=data), False
    for name in ("a shard", "the labels", "zarr.json", "a receipt", "files.json"):
        for by, how in ((0, "emptied"), (0.5, "cut in half"), (1, "a byte longer"), (100_000, "100 kB longer")):
            yield f"{name} {how}", partial(_cut, PARTS[name], by), False
    for name, place in PARTS.items():
        for what in ("nothing", "fifo", "folder", "device", "dangling link", "link to itself"):
            yield f"{what} in place of {name}", partial(_in_place_of, place, what), False
        yield f"link to the same bytes in place of {name}", partial(_in_place_of, place, "link to the same bytes"), True
    for name in ("zarr.json", "zarr.json of the labels", "a receipt", "files.json"):
        for what in ("deep JSON", "UTF-16", "a byte order mark", "other JSON"):
            yield f"{what} in place of {name}", partial(_in_place_of, PARTS[name], what), False
    yield "a link to a shard of another cache", partial(_in_place_of, PARTS["a shard"], "link to another shard"), False


def _chunk_file(store: Store, *, both: bool) -> None:
    theirs = Store(store.world, "other")
    for mine, source in zip(store.folders(both=both), theirs.folders(both=both), strict=True):
        copy(source / "zarr.json", mine / "zarr.json")


def cases(world: World) -> Iterator[Case]:
    """Every attack by every verb; some over a server, and on staged copies and on scales."""
    if not world.wants("structure/"):
        return
    for name, count in (("a", 9), ("b", 8), ("c", 7)):
        pictures(world.folder / "uneven", seed=ord(name), counts={"train": count}, classes=name)
    world.kinds["other"] = ("--data-dir", world.folder / "uneven")
    world.kinds["seeded"] = ("--data-dir", world.data, "--seed", "1")
    for cache in ("other", "seeded"):
        world.cache(cache)
    world.undisturbed("train", "test")
    for number, (name, change, harmless) in enumerate(attacks()):
        server = number % 6 == 0 or "of another cache" in name or "exchanged" in name
        server = server and not name.startswith(("fifo", "device"))  # for which the little server itself would wait
        run = partial(_attack, world, name, change, harmless=harmless, server=server)
        yield Case("structure", _group(name), f"structure/{name}", run)
    for name, change in (("shards exchanged", partial(_swap_shards)), ("labels", _staged_labels)):
        yield Case(
            "structure", "staged copies", f"structure/staged copy: {name}", partial(_staged, world, name, change)
        )
    if world.wants("structure/scales"):
        yield from _scales(world)


def _group(name: str) -> str:
    if name.startswith(tuple(FIELDS)):
        return "edited metadata"
    if name.startswith(tuple(ARRAYS)):
        return "arrays written anew"
    if name.startswith(tuple(SHAPES)):
        return "edited shape and codecs"
    if "in place of" in name:
        return "no file, or another, in place of a file"
    if name.endswith(("longer", "emptied", "cut in half")):
        return "cut and longer files"
    return "exchanged"


def _attack(world: World, name: str, change: Change, *, harmless: bool, server: bool) -> list[Step]:
    store = Store(world)

    def attacked() -> None:
        world.fresh("train")
        change(store)

    attacked()
    steps = [read(world, "train", reader, name) for reader in ("train", "eval")]
    command = ("verify", store.path)
    missed = None if harmless else "verify does not find it"
    steps.append(judge(f"{shown(command)}  # {name}", world.runner.run(*command), lambda: missed, damage=True))
    steps += [read(world, "train", reader, name) for reader in (("stage",) if server else ())]
    if server:
        with serving(world.folder) as address:
            steps += [read(world, "train", reader, name, at=f"{address}/train.zarr") for reader in ("train", "eval")]
    steps.append(read(world, "train", "extract", name))
    attacked()
    step = repaired(world, "train", name, may_refuse=True)
    return [*steps, step]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP, with parts of files."""
    command = [sys.executable, str(ROOT / "tests" / "range_server.py"), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def _staged_labels(store: Store) -> None:
    _chunk_of("other", "labels", store, both=False)


def _staged(world: World, name: str, change: Change) -> list[Step]:
    """Damage a staged copy that is there already: it must be noticed when it is used again."""
    world.fresh("train")
    near, out = world.folder / "near", world.folder / "read"
    remove(near)
    remove(out)
    command = world.train_command(world.cache("train"), out, "--stage", near)
    world.must(*command)
    made = next(path for path in near.iterdir() if path.name.endswith(".zarr"))

    class Staged(Store):
        @property
        def path(self) -> Path:
            return made

    change(Staged(world))
    remove(out)
    wanted = world.trained("train")
    done = world.runner.run(*command)
    return [judge(f"{shown(command)}  # staged copy: {name}", done, lambda: run_difference(out, wanted))]


def _scales(world: World) -> Iterator[Case]:
    world.kinds["int8-other"] = ("--data-dir", world.folder / "uneven", "--precision", "int8")
    world.cache("int8-other")
    world.undisturbed("int8")

    def run(both: bool) -> list[Step]:
        world.fresh("int8")
        _chunk_of("int8-other", "scales", Store(world, "int8"), both=both)
        what = "scales of another cache"
        steps = [read(world, "int8", reader, what) for reader in ("train", "eval")]
        command = ("verify", world.cache("int8"))
        done = world.runner.run(*command)
        return [*steps, judge(shown(command), done, lambda: "verify does not find it", damage=True)]

    for both in (False, True):
        name = f"structure/scales of another cache in the store{' and its copy' if both else ''}"
        yield Case("structure", "exchanged", name, partial(run, both))

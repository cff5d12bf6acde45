"""Folders and lists of pictures: ordinary ones that must give the right samples, and odd ones."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from attack_inputs import clear, tried
from attack_runner import OTHER, RIGHT, SENTENCE, SILENT, Case, Done, Step, judge, remove, shown
from attack_world import EXTRACT, World
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[Any]
PLAIN = (*EXTRACT, "--precision", "float32", "--device", "cpu")


def cases(world: World) -> Iterator[Case]:
    """All folders."""
    for name, group, run in (*_trees(), *_replaced(), *_lists(), *_names()):
        yield Case("inputs", group, f"inputs/folders/{name}", partial(in_a_folder, world, run))


Try = Callable[["Folder"], list[Step]]
Named = Iterator[tuple[str, str, Try]]


def in_a_folder(world: World, run: Try) -> list[Step]:
    clear(world)
    folder = Folder(world)
    remove(folder.root.parent / "elsewhere")
    steps = run(folder)
    remove(folder.root)
    return steps


class Folder:
    """A folder of pictures under attack, and its cache."""

    def __init__(self, world: World) -> None:
        self.world, self.root = world, world.folder / "pictures"
        self.store = world.folder / "tried.zarr"
        self.rng = np.random.default_rng(5)
        remove(self.root)
        self.root.mkdir()

    def picture(self, name: str, *, shade: int = 0, size: int = 16) -> Path:
        """Write a picture of noise."""
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((self.rng.integers(0, 120, (size, size, 3)) + shade).astype(np.uint8)).save(file)
        return file

    def classes(self, root: str = "train", count: int = 3, names: tuple[str, ...] = ("cat", "dog")) -> None:
        """Write class folders."""
        for label, name in enumerate(names):
            for i in range(count):
                self.picture(f"{root}/{name}/{i}.png", shade=100 * label)

    def command(self, *more: str | Path, dataset: str = "folder", root: Path | None = None) -> tuple[str | Path, ...]:
        """Give the command that extracts it."""
        plain = [part if part != "folder" else dataset for part in PLAIN]
        return (*plain, "--data-dir", root or self.root, "--out", self.store, *more)

    def extract(
        self,
        wanted: dict[str, int] | None,
        what: str,
        *more: str | Path,
        may_refuse: bool = False,
        told: str = "",
        dataset: str = "folder",
        root: Path | None = None,
    ) -> Step:
        """Extract it: right if it has as many samples of each class as wanted; ``None``: must refuse."""

        def right(done: Done) -> str | None:
            if wanted is None:
                return f"is accepted, as {self.counts()}"
            if (found := self.counts()) != wanted:
                return f"classes {found} in place of {wanted}"
            if told and told not in done.err:
                return f"is right, but does not say {told!r}"
            return None

        refuse = may_refuse or wanted is None
        command = self.command(*more, dataset=dataset, root=root)
        return tried(self.world, *command, what=what, right=right, may_refuse=refuse)

    def counts(self) -> dict[str, int]:
        """Samples of each class in the cache."""
        found: dict[str, int] = self.world.must("inspect", self.store, "--json").json["classes"]
        return found

    def rows(self, store: Path | None = None) -> Pixels:
        """The cached values, samples sorted by their ids."""
        out = self.world.folder / "rows.npy"
        place = store or self.store

        def call() -> None:
            import zarr

            from losa_cache.cache.store import open_cache

            order = np.argsort(open_cache(place).ids)
            np.save(out, np.asarray(zarr.open_array(str(place / "activations" / "block"))[:])[order])

        self.world.must("(read)", call=call)
        found: Pixels = np.load(out)
        return found


def _nothing() -> None:
    return None


def _link(target: str | Path, place: Path) -> Any:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


def _trees() -> Named:
    """Loops, splits by other names, hidden and foreign folders."""
    three = {"cat": 3, "dog": 3}

    def tree(change: Callable[[Folder], Any], wanted: dict[str, int] | None = three, **how: Any) -> Try:
        def run(folder: Folder) -> list[Step]:
            folder.classes()
            change(folder)
            return [folder.extract(wanted, "folders", **how)]

        return run

    loops: dict[str, tuple[Callable[[Folder], Any], dict[str, int]]] = {
        "to the folder above the class": (lambda f: _link("..", f.root / "train/dog/again"), three),
        "to the class itself": (lambda f: _link(".", f.root / "train/dog/again"), three),
        "to the root": (lambda f: _link(f.root, f.root / "train/dog/again"), three),
        "of two folders to each other": (
            lambda f: (_link("../two", f.root / "train/dog/one/two"), _link("../one", f.root / "train/dog/two/one")),
            three,
        ),
        "to a picture of the same class": (lambda f: _link("0.png", f.root / "train/dog/again.png"), three),
        "to a folder met twice": (
            lambda f: (
                f.picture("../elsewhere/x.png"),
                _link(f.root.parent / "elsewhere", f.root / "train/dog/a"),
                _link(f.root.parent / "elsewhere", f.root / "train/dog/b"),
            ),
            {"cat": 3, "dog": 4},
        ),
        "to itself": (lambda f: _link("again", f.root / "train/dog/again"), three),
        "to a folder elsewhere": (
            lambda f: (f.picture("../elsewhere/x.png"), _link(f.root.parent / "elsewhere", f.root / "train/dog/a")),
            {"cat": 3, "dog": 4},
        ),
    }
    for name, (change, wanted) in loops.items():
        yield f"loop {name}", "links", tree(change, wanted)

    def linked_class(folder: Folder) -> list[Step]:
        folder.classes("../elsewhere")
        (folder.root / "train").mkdir()
        for name in ("cat", "dog"):
            _link(folder.root.parent / "elsewhere" / name, folder.root / "train" / name)
        return [folder.extract(three, "classes that are links")]

    yield "classes that are links", "links", linked_class

    def splits(train: str, test: str, asked: str = "test") -> Try:
        def run(folder: Folder) -> list[Step]:
            folder.classes(train, 3)
            folder.classes(test, 2)
            steps = [folder.extract(three, "the training split", may_refuse=True)]
            clear(folder.world)
            return [*steps, folder.extract({"cat": 2, "dog": 2}, "the other split", "--split", asked, may_refuse=True)]

        return run

    for train, test, asked in (
        ("Training", "Testing", "test"),
        ("TRAIN", "TEST", "test"),
        ("trn", "tst", "test"),
        ("Train", "Test", "test"),
        ("training", "validation", "val"),
        ("train", "valid", "val"),
        ("train", "dev", "val"),
        ("train", "eval", "test"),
        ("train_set", "test_set", "test"),
        ("training_set", "test_set", "test"),
    ):
        yield f"splits {train} and {test}", "splits", splits(train, test, asked)

    def both(folder: Folder) -> list[Step]:
        folder.classes("train")
        folder.classes(".", names=("bird", "fish"))
        step = folder.extract(None, "train/ and classes beside it")
        if step.outcome == SILENT and folder.counts() == three:
            said = folder.world.runner.run(
                *folder.command("--seed", "1", "--out", folder.store.with_name("t2.zarr"))
            ).err
            outcome = RIGHT if "bird" in said or "beside" in said else SILENT
            return [Step(step.command, outcome, step.detail)]
        return [step]

    yield "train/ and classes beside it", "splits", both

    def two_names(folder: Folder) -> list[Step]:
        folder.classes("train")
        folder.classes("Training", 2)
        return [folder.extract(None, "train/ and Training/")]

    yield "train/ and Training/", "splits", two_names

    for hidden in (
        ".ipynb_checkpoints",
        "__MACOSX",
        ".git",
        "@eaDir",
        "$RECYCLE.BIN",
        "System Volume Information",
        ".Trash-1000",
        "lost+found",
        "__pycache__",
        ".thumbnails",
    ):
        yield (
            f"hidden class {hidden}",
            "hidden and foreign files",
            tree(partial(Folder.picture, name=f"train/{hidden}/0-checkpoint.png")),
        )
    for hidden in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        yield (
            f"hidden folder in a class: {hidden}",
            "hidden and foreign files",
            tree(partial(Folder.picture, name=f"train/cat/{hidden}/0-checkpoint.png")),
        )
    for name in (".hidden.png", "._0.png", ".0.png.swp.png"):
        yield f"hidden file {name}", "hidden and foreign files", tree(partial(Folder.picture, name=f"train/cat/{name}"))
    foreign: dict[str, Callable[[Folder], Any]] = {
        "AppleDouble that is no picture": lambda f: (f.root / "train/cat/._0.png").write_bytes(
            b"\0\x05\x16\x07" + bytes(100)
        ),
        "Thumbs.db, desktop.ini and .DS_Store": lambda f: [
            (f.root / "train/cat" / n).write_bytes(b"x") for n in ("Thumbs.db", "desktop.ini", ".DS_Store")
        ],
        "a hidden split": lambda f: f.picture(".train/cat/0.png"),
        "files beside the classes": lambda f: (f.root / "train/labels.csv").write_text("a,b\n"),
        "endings in capitals": lambda f: (f.root / "train/cat/0.png").rename(f.root / "train/cat/0.PNG"),
    }
    for name, change in foreign.items():
        yield name, "hidden and foreign files", tree(change)
    yield (
        "an empty class",
        "hidden and foreign files",
        tree(lambda f: (f.root / "train/empty").mkdir(), {"cat": 3, "dog": 3, "empty": 0}, may_refuse=True),
    )
    yield "a hidden root", "hidden and foreign files", _hidden_root


def _hidden_root(folder: Folder) -> list[Step]:
    folder.classes(".cache/train")
    return [folder.extract({"cat": 3, "dog": 3}, "a root below a hidden folder", root=folder.root / ".cache")]


def _replaced() -> Named:  # noqa: PLR0915
    """A data set that changed under its cache: the old cache must not be taken for it."""

    def replaced(
        make: Callable[[Folder, int], Any], dataset: str, *more: str, root: str = ".", keep_times: bool
    ) -> Try:
        def run(folder: Folder) -> list[Step]:
            make(folder, 0)
            times = {p: p.stat().st_mtime_ns for p in folder.root.rglob("*") if p.is_file()}
            command = folder.command(*more, dataset=dataset, root=folder.root / root)
            folder.world.must(*command)
            before = folder.rows()
            make(folder, 1)
            for path, time in times.items():
                if keep_times and path.exists():
                    os.utime(path, ns=(time, time))
            done = folder.world.runner.run(*command)

            def right() -> str | None:
                same = folder.rows().shape == before.shape and bool((folder.rows() == before).all())
                return "the cache of other pictures is reused" if same else None

            return [judge(f"{shown(command)}  # replaced", done, right)]

        return run

    def eurosat(ending: str, sizes: tuple[int, int]) -> Callable[[Folder, int], Any]:
        names = (
            "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake"
        )

        def make(folder: Folder, turn: int) -> None:
            rng = np.random.default_rng(turn)
            for name in names.split():
                for i in range(2):
                    file = folder.root / f"eurosat/2750/{name}/{name}_{i}{ending}"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    size = sizes[turn]
                    pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(file, format="BMP" if sizes[0] == sizes[1] else None)

        return make

    def folders(folder: Folder, turn: int) -> None:
        rng = np.random.default_rng(turn)
        for name in "ab":
            for i in range(2):
                file = folder.root / f"train/{name}/{i}.bmp"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(file)

    def rendered(folder: Folder, turn: int) -> None:
        rng = np.random.default_rng(turn)
        for split in ("train", "valid", "test"):
            for name in ("negative", "positive"):
                file = folder.root / f"rendered-sst2/{split}/{name}/0.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(file, format="BMP")

    def vtab(folder: Folder, turn: int) -> None:
        rng, lines = np.random.default_rng(turn), []
        for i in range(4):
            file = folder.root / f"cifar/images/train800/{i:06d}.bmp"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(file)
            lines.append(f"images/train800/{i:06d}.bmp {i % 2}")
        for name in ("train800", "train800val200"):
            (folder.root / f"cifar/{name}.txt").write_text("\n".join(lines))

    def labels(folder: Folder, turn: int) -> None:
        folder.rng = np.random.default_rng(3)
        remove(folder.root / "train")
        folder.classes()
        if turn:
            a, b = folder.root / "train/cat/0.png", folder.root / "train/dog/0.png"
            a.rename(folder.root / "aside.png")
            b.rename(a)
            (folder.root / "aside.png").rename(b)

    kinds: tuple[tuple[str, Callable[[Folder, int], Any], str, tuple[str, ...], str], ...] = (
        ("eurosat, other sizes", eurosat(".jpg", (64, 24)), "eurosat", (), "."),
        ("eurosat, same sizes", eurosat(".jpg", (16, 16)), "eurosat", (), "."),
        ("rendered SST2, same sizes", rendered, "renderedsst2", (), "."),
        ("folder, same sizes", folders, "folder", (), "."),
        ("vtab, same sizes", vtab, "vtab", ("--split", "train800val200"), "cifar"),
        ("folder, labels exchanged", labels, "folder", (), "."),
    )
    for name, make, dataset, more, root in kinds:
        for keep in (False, True):
            end = ", time stamps kept" if keep else ""
            yield (
                f"replaced: {name}{end}",
                "data sets that changed",
                replaced(make, dataset, *more, root=root, keep_times=keep),
            )


def _lists() -> Named:
    """Lists of pictures: VTAB's and Places365's."""

    def vtab(change: Callable[[str], bytes], wanted: dict[str, int] | None, *, split: str = "train800val200") -> Try:
        def run(folder: Folder) -> list[Step]:
            lines = []
            for i in range(8):
                folder.picture(f"cifar/images/train800/{i:06d}.png")
                lines.append(f"images/train800/{i:06d}.png {i % 2}")
            (folder.root / "cifar/train800val200.txt").write_bytes(change("\n".join(lines)))
            root = folder.root / "cifar"
            counts = wanted and {str(n): 4 if n < 2 else 0 for n in range(100)} | {}
            step = folder.extract(counts, "a list", "--split", split, dataset="vtab", root=root)
            return [step]

        return run

    right = {"0": 4, "1": 4}
    kinds: dict[str, tuple[Callable[[str], bytes], dict[str, int] | None]] = {
        "as it should be": (lambda text: text.encode(), right),
        "with a byte order mark": (lambda text: b"\xef\xbb\xbf" + text.encode(), right),
        "with CRLF": (lambda text: text.replace("\n", "\r\n").encode(), right),
        "with an empty last line": (lambda text: f"{text}\n\n".encode(), right),
        "in UTF-16": (lambda text: text.encode("utf-16"), None),
        "with a file twice": (lambda text: (text + "\n" + text.splitlines()[0]).encode(), None),
        "with a file twice, of two classes": (lambda text: (text + "\nimages/train800/000000.png 1").encode(), None),
        "with a file by two names": (lambda text: (text + "\n./images/train800/000000.png 0").encode(), None),
        "with a file that is not there": (lambda text: (text + "\nimages/train800/9.png 0").encode(), None),
        "with a label of letters": (lambda text: text.replace(" 1", " one", 1).encode(), None),
        "with a label of Arabic digits": (lambda text: text.replace(" 1", " \u0661", 1).encode(), None),
        "with a superscript label": (lambda text: text.replace(" 1", " \u00b9", 1).encode(), None),
        "with a huge label": (lambda text: text.replace(" 1", " 1" + "0" * 400, 1).encode(), None),
        "with a path that leads out": (lambda text: text.replace("images", "../../etc", 1).encode(), None),
        "with a zero byte": (lambda text: text.replace("train800", "train\0", 1).encode(), None),
        "empty": (lambda text: b"", None),
    }
    for name, (change, wanted) in kinds.items():
        yield f"vtab list {name}", "lists of pictures", vtab(change, wanted)

    def places(lines: Callable[[list[str]], str], categories: bytes, wanted: dict[str, int] | None, **how: Any) -> Try:
        def run(folder: Folder) -> list[Step]:
            entries = []
            for number, name in enumerate(("airfield", "alley")):
                for i in range(3):
                    folder.picture(f"data_256/{name[0]}/{name}/{i:08d}.jpg")
                    entries.append(f"/{name[0]}/{name}/{i:08d}.jpg {number}")
            (folder.root / "places365_train_standard.txt").write_text(lines(entries))
            (folder.root / "categories_places365.txt").write_bytes(categories)
            return [folder.extract(wanted, "Places365's lists", dataset="places365", **how)]

        return run

    plain = b"/a/airfield 0\n/a/alley 1\n"
    counts = {"a/airfield": 3, "a/alley": 3}
    yield "places list as it should be", "lists of pictures", places("\n".join, plain, counts)
    yield (
        "places categories with a byte order mark",
        "lists of pictures",
        places("\n".join, b"\xef\xbb\xbf" + plain, counts),
    )
    twice = places(lambda lines: "\n".join([*lines, lines[0]]), plain, counts, may_refuse=True)
    yield "places list with a file twice", "lists of pictures", twice
    mixed = places(lambda lines: "\n".join([*lines, lines[0][:-1] + "1"]), plain, None)
    yield "places list with a file in two classes", "lists of pictures", mixed
    swapped = b"/a/alley 1\n/a/airfield 0\n"
    yield "places categories in another order", "lists of pictures", places("\n".join, swapped, counts, may_refuse=True)
    yield (
        "places categories with a number twice",
        "lists of pictures",
        places("\n".join, b"/a/airfield 0\n/a/alley 0\n", None),
    )
    yield (
        "places categories with a name twice",
        "lists of pictures",
        places("\n".join, b"/a/airfield 0\n/a/airfield 1\n", None),
    )


def _names() -> Named:
    """Names that a file system takes: they are ids, and are shown."""
    odd = {
        "a line break": "a\nb",
        "escapes": "\x1b[31mred",
        "not UTF-8": os.fsdecode(b"\xff\xfe"),
        "255 bytes": "n" * 251,
        "spaces": "  a  ",
        "a dash": "--help",
        "right to left": "\u202egpj",
        "a quote": "a'\"b",
        "emoji": "\U0001f600",
        "a tab": "a\tb",
        "a percent sign": "%s%d{x}",
        "brackets": "[bold red]x[bold]",
    }
    for name, text in odd.items():

        def run(folder: Folder, text: str = text, name: str = name) -> list[Step]:
            folder.classes()
            folder.picture(f"train/cat/{text}.png")
            steps = [folder.extract({"cat": 4, "dog": 3}, name)]
            broken = folder.root / f"train/cat/{text}.png"
            broken.write_bytes(b"")
            clear(folder.world)
            return [*steps, folder.extract(None, f"{name}, broken")]

        yield f"a file named with {name}", "names", run
        if len(text) < 200:

            def as_class(folder: Folder, text: str = text, name: str = name) -> list[Step]:
                folder.classes(names=("dog", text))
                step = folder.extract({"dog": 3, text: 3}, name, may_refuse=True)
                world = folder.world
                if step.outcome == SENTENCE:
                    return [step]
                steps = [step]
                for command in (("inspect", folder.store), ("list",), ("verify", folder.store)):
                    done = world.runner.run(*command)
                    raw = [letter for letter in done.out if ord(letter) < 32 and letter not in "\n\t"]
                    told = f"shows {raw}" if raw else None
                    steps.append(
                        judge(shown(command), done, partial(str.strip, told) if told else _nothing, may_refuse=False)
                    )
                return [
                    Step(s.command, OTHER if s.outcome == SILENT and "shows" in s.detail else s.outcome, s.detail)
                    for s in steps
                ]

            yield f"a class named with {name}", "names", as_class

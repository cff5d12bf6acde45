"""Folders, lists and pictures: ordinary ones that must give the right samples, and broken ones."""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from attack_inputs import _clear, tried
from attack_runner import OTHER, RIGHT, SENTENCE, SILENT, Case, Done, Step, judge, remove, shown
from attack_world import EXTRACT, World
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[Any]
PLAIN = (*EXTRACT, "--precision", "float32", "--device", "cpu")


def cases(world: World) -> Iterator[Case]:
    """All folders."""
    for name, group, run in (*_pictures(), *_trees(), *_replaced(), *_lists(), *_broken(), *_names(), *_turned()):
        yield Case("inputs", group, f"inputs/folders/{name}", partial(_in_a_folder, world, run))


Try = Callable[["Folder"], list[Step]]
Named = Iterator[tuple[str, str, Try]]


def _in_a_folder(world: World, run: Try) -> list[Step]:
    _clear(world)
    folder = Folder(world)
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
            np.save(out, np.asarray(zarr.open_array(str(place / "activations" / "block"))[:])[order])  # type: ignore[index]

        self.world.must("(read)", call=call)
        found: Pixels = np.load(out)
        return found


def _pictures() -> Named:
    """Greys of more than 8 bits, and modes that hold the same picture."""

    def greys(save: Callable[[Pixels, Path], Path]) -> Try:
        def run(folder: Folder) -> list[Step]:
            rng, values = np.random.default_rng(1), {}
            for label, middle in (("dark", 9000), ("light", 45000)):
                for i in range(3):
                    values[f"train/{label}/{i}"] = (middle + rng.normal(0, 2500, (16, 16))).clip(0, 65535)
            for name, grey in values.items():
                (folder.root / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.rint(grey / 257).astype(np.uint8)).save(folder.root / f"{name}.png")
            folder.world.must(*folder.command())
            eight = folder.rows()
            remove(folder.root / "train")
            _clear(folder.world)
            for name, grey in values.items():
                (folder.root / name).parent.mkdir(parents=True, exist_ok=True)
                save(grey, folder.root / name)

            def right(done: Done) -> str | None:
                error = float(np.linalg.norm(folder.rows() - eight) / np.linalg.norm(eight))
                return None if error < 0.1 else f"the relative error against 8 bits is {error:.2f}"

            return [tried(folder.world, *folder.command(), what="greys", right=right)]

        return run

    def saved(ending: str, change: Callable[[Pixels], Image.Image]) -> Callable[[Pixels, Path], Path]:
        def save(grey: Pixels, path: Path) -> Path:
            file = path.with_name(path.name + ending)
            change(grey).save(file)
            return file

        return save

    def pgm(grey: Pixels, path: Path) -> Path:
        file = path.with_name(path.name + ".pgm")
        file.write_bytes(b"P5\n16 16\n65535\n" + grey.astype(">u2").tobytes())
        return file

    def pgm_12(grey: Pixels, path: Path) -> Path:
        file = path.with_name(path.name + ".pgm")
        file.write_bytes(b"P5\n16 16\n4095\n" + (grey / 65535 * 4095).astype(">u2").tobytes())
        return file

    def ppm(grey: Pixels, path: Path) -> Path:
        file = path.with_name(path.name + ".ppm")
        file.write_bytes(b"P6\n16 16\n65535\n" + grey[:, :, None].repeat(3, 2).astype(">u2").tobytes())
        return file

    def png_of(kind: int, channels: int) -> Callable[[Pixels, Path], Path]:
        def save(grey: Pixels, path: Path) -> Path:
            planes = grey.astype(">u2")[:, :, None].repeat(channels, 2)
            if kind in (4, 6):
                planes[:, :, -1] = 65535
            file = path.with_name(path.name + ".png")
            file.write_bytes(png(planes, kind))
            return file

        return save

    modes: dict[str, Callable[[Pixels, Path], Path]] = {
        "I;16 in PNG": saved(".png", lambda grey: Image.fromarray(grey.astype(np.uint16))),
        "I;16 in TIFF": saved(".tif", lambda grey: Image.fromarray(grey.astype(np.uint16))),
        "I;16B in TIFF": saved(".tiff", lambda grey: Image.frombytes("I;16B", (16, 16), grey.astype(">u2").tobytes())),
        "I in TIFF": saved(".tif", lambda grey: Image.fromarray(grey.astype(np.int32))),
        "F of 0 to 65535 in TIFF": saved(".tif", lambda grey: Image.fromarray(grey.astype(np.float32))),
        "F of 0 to 1 in TIFF": saved(".tif", lambda grey: Image.fromarray((grey / 65535).astype(np.float32))),
        "PGM of 16 bits": pgm,
        "PGM of 12 bits": pgm_12,
        "PPM of 16 bits": ppm,
        "grey and alpha of 16 bits in PNG": png_of(4, 2),
        "RGB of 16 bits in PNG": png_of(2, 3),
        "RGBA of 16 bits in PNG": png_of(6, 4),
    }
    for name, save in modes.items():
        yield f"grey: {name}", "pictures of more than 8 bits", greys(save)

    def same_as_rgb(change: Callable[[Image.Image], Image.Image], ending: str = ".png") -> Try:
        def run(folder: Folder) -> list[Step]:
            pictures = {}
            for label in "ab":
                for i in range(2):
                    grey = folder.rng.integers(0, 2, (16, 16)).astype(np.uint8) * 255
                    pictures[f"train/{label}/{i}"] = Image.fromarray(grey)
            for name, picture in pictures.items():
                (folder.root / name).parent.mkdir(parents=True, exist_ok=True)
                picture.convert("RGB").save(folder.root / f"{name}.png")
            folder.world.must(*folder.command())
            plain = folder.rows()
            remove(folder.root / "train")
            _clear(folder.world)
            for name, picture in pictures.items():
                (folder.root / name).parent.mkdir(parents=True, exist_ok=True)
                change(picture).save(folder.root / f"{name}{ending}")

            def right(done: Done) -> str | None:
                error = float(np.abs(folder.rows() - plain).max())
                return None if error < 1e-4 else f"values differ by up to {error:.3g} from those in RGB"

            return [tried(folder.world, *folder.command(), what="mode", right=right)]

        return run

    yield "mode: L", "pictures in other modes", same_as_rgb(lambda picture: picture)
    yield "mode: 1", "pictures in other modes", same_as_rgb(lambda picture: picture.convert("1"))
    yield "mode: P", "pictures in other modes", same_as_rgb(lambda picture: picture.convert("P"))
    yield "mode: LA", "pictures in other modes", same_as_rgb(lambda picture: picture.convert("LA"))
    yield "mode: RGBA", "pictures in other modes", same_as_rgb(lambda picture: picture.convert("RGBA"))
    yield "mode: 1 in TIFF", "pictures in other modes", same_as_rgb(lambda picture: picture.convert("1"), ".tif")
    yield "mode: BMP", "pictures in other modes", same_as_rgb(lambda picture: picture, ".bmp")
    yield (
        "mode: CMYK in TIFF",
        "pictures in other modes",
        same_as_rgb(lambda p: p.convert("RGB").convert("CMYK"), ".tif"),
    )


def png(planes: Pixels, kind: int) -> bytes:
    """Write a PNG of 16 bits by hand: (height, width, channels), colour type 0, 2, 4 or 6."""
    height, width, _ = planes.shape

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    lines = b"".join(b"\0" + line.tobytes() for line in planes)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def _link(target: str | Path, place: Path) -> None:
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
                f.picture("else/x.png"),
                _link(f.root / "else", f.root / "train/dog/a"),
                _link(f.root / "else", f.root / "train/dog/b"),
            ),
            {"cat": 3, "dog": 4},
        ),
        "to itself": (lambda f: _link("again", f.root / "train/dog/again"), three),
        "to a folder elsewhere": (
            lambda f: (f.picture("else/x.png"), _link(f.root / "else", f.root / "train/dog/a")),
            {"cat": 3, "dog": 4},
        ),
    }
    for name, (change, wanted) in loops.items():
        yield f"loop {name}", "links", tree(change, wanted)

    def linked_class(folder: Folder) -> list[Step]:
        folder.classes("elsewhere")
        (folder.root / "train").mkdir()
        for name in ("cat", "dog"):
            _link(folder.root / "elsewhere" / name, folder.root / "train" / name)
        return [folder.extract(three, "classes that are links")]

    yield "classes that are links", "links", linked_class

    def hard_links(folder: Folder) -> list[Step]:
        folder.classes()
        os.link(folder.root / "train/cat/0.png", folder.root / "train/cat/9.png")
        return [folder.extract(three, "a file under two names", may_refuse=True)]

    yield "a file under two names", "links", hard_links

    def splits(train: str, test: str, asked: str = "test") -> Try:
        def run(folder: Folder) -> list[Step]:
            folder.classes(train, 3)
            folder.classes(test, 2)
            steps = [folder.extract(three, "the training split", may_refuse=True)]
            _clear(folder.world)
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
            tree(lambda f, h=hidden: f.picture(f"train/{h}/0-checkpoint.png")),
        )  # type: ignore[misc]
    for hidden in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        yield (
            f"hidden folder in a class: {hidden}",
            "hidden and foreign files",
            tree(lambda f, h=hidden: f.picture(f"train/cat/{h}/0-checkpoint.png")),
        )  # type: ignore[misc]
    for name in (".hidden.png", "._0.png", ".0.png.swp.png"):
        yield f"hidden file {name}", "hidden and foreign files", tree(lambda f, n=name: f.picture(f"train/cat/{n}"))  # type: ignore[misc]
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


def _replaced() -> Named:
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


def _broken() -> Named:
    """Pictures that are none: named with ``stop``, listed with ``skip``."""

    def bomb(file: Path) -> None:
        head = struct.pack(">IIBBBBB", 200_000, 200_000, 1, 0, 0, 0, 0)
        body = b"IHDR" + head
        raw = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
        file.write_bytes(raw + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND")))

    def cut(file: Path) -> None:
        raw = file.read_bytes()
        file.write_bytes(raw[: len(raw) // 2])

    def instead(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def change(file: Path) -> None:
            file.unlink()
            make(file)

        return change

    breaks: dict[str, Callable[[Path], Any]] = {
        "cut in half": cut,
        "empty": lambda file: file.write_bytes(b""),
        "text": lambda file: file.write_text("no picture"),
        "a web page": lambda file: file.write_text("<!doctype html>"),
        "an LFS pointer": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "a header of 4e10 pixels": bomb,
        "a changed byte": lambda file: file.write_bytes(file.read_bytes()[:60] + b"\xff" + file.read_bytes()[61:]),
        "a FIFO": instead(os.mkfifo),
        "a folder": instead(Path.mkdir),
        "a dangling link": instead(lambda file: file.symlink_to("nowhere")),
        "a device": instead(lambda file: file.symlink_to("/dev/zero")),
        "SVG": lambda file: file.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"),
    }
    for name, change in breaks.items():

        def run(folder: Folder, change: Callable[[Path], Any] = change, name: str = name) -> list[Step]:
            folder.classes()
            change(folder.root / "train/cat/1.png")
            wanted = {"cat": 2, "dog": 3} if name in ("a FIFO", "a folder", "a dangling link", "a device") else None
            steps = [folder.extract(wanted, name, may_refuse=True)]
            _clear(folder.world)
            command = folder.command("--on-error", "skip")
            done = folder.world.runner.run(*command)

            def right() -> str | None:
                found = folder.counts()
                fine = found.get("dog") == 3 and found.get("cat") == 2
                return None if fine and bool(np.isfinite(folder.rows()[1:]).any()) else f"classes {found}"

            return [*steps, judge(f"{shown(command)}  # {name}", done, right)]

        yield f"broken picture: {name}", "broken pictures", run

    def all_broken(folder: Folder) -> list[Step]:
        folder.classes()
        for file in folder.root.rglob("*.png"):
            file.write_bytes(b"")
        return [folder.extract(None, "all broken", "--on-error", "skip")]

    yield "broken pictures, all of them", "broken pictures", all_broken
    for ending in (".mp4", ".webm", ".gif"):

        def video(folder: Folder, ending: str = ending) -> list[Step]:
            for name in "ab":
                (folder.root / f"train/{name}").mkdir(parents=True)
                (folder.root / f"train/{name}/0{ending}").write_bytes(b"no video")
            command = ("extract", "--backbone", "vivit_digits", "--dataset", "folder", "--data-dir", folder.root)
            return [tried(folder.world, *command, "--out", folder.store, what=f"{ending} that is none")]

        yield f"broken video {ending}", "broken pictures", video


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
        "brackets": "[bold red]x[/]",
    }
    for name, text in odd.items():

        def run(folder: Folder, text: str = text, name: str = name) -> list[Step]:
            folder.classes()
            folder.picture(f"train/cat/{text}.png")
            steps = [folder.extract({"cat": 4, "dog": 3}, name)]
            broken = folder.root / f"train/cat/{text}.png"
            broken.write_bytes(b"")
            _clear(folder.world)
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
                    steps.append(
                        judge(shown(command), done, lambda raw=raw: f"shows {raw}" if raw else None, may_refuse=False)
                    )  # type: ignore[misc]
                return [
                    Step(s.command, OTHER if s.outcome == SILENT and "shows" in s.detail else s.outcome, s.detail)
                    for s in steps
                ]

            yield f"a class named with {name}", "names", as_class


def _turned() -> Named:
    """Pictures that say how they are to be turned."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    for number, turn in turns.items():
        for ending in (".png", ".tif", ".webp"):

            def run(folder: Folder, number: int = number, turn: Any = turn, ending: str = ending) -> list[Step]:
                exif = Image.Exif()
                exif[0x0112] = number
                options: dict[str, Any] = {"lossless": True} if ending == ".webp" else {}
                pictures = {}
                for label in "ab":
                    for i in range(2):
                        pixels = folder.rng.integers(0, 255, (16, 24, 3), dtype=np.uint8)
                        pictures[f"train/{label}/{i}"] = Image.fromarray(pixels)
                for name, picture in pictures.items():
                    (folder.root / name).parent.mkdir(parents=True, exist_ok=True)
                    picture.transpose(turn).save(folder.root / f"{name}{ending}", **options)
                folder.world.must(*folder.command())
                upright = folder.rows()
                _clear(folder.world)
                for name, picture in pictures.items():
                    picture.save(folder.root / f"{name}{ending}", exif=exif, **options)

                def right(done: Done) -> str | None:
                    same = bool((folder.rows() == upright).all())
                    return None if same else "is not turned as its EXIF says"

                return [tried(folder.world, *folder.command(), what=f"EXIF orientation {number}", right=right)]

            if ending == ".png" or number == 6:
                yield f"EXIF orientation {number} in {ending}", "EXIF orientation", run

"""Pictures: of more than 8 bits, in odd modes, turned, and broken."""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from attack_folders import Folder, Named, Pixels, Try, in_a_folder
from attack_inputs import clear, tried
from attack_runner import Case, Done, Step, judge, remove, shown
from attack_world import World
from PIL import Image


def cases(world: World) -> Iterator[Case]:
    """All pictures."""
    for name, group, run in (*_pictures(), *_broken(), *_turned()):
        yield Case("inputs", group, f"inputs/pictures/{name}", partial(in_a_folder, world, run))


def _pictures() -> Named:  # noqa: PLR0915
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
            clear(folder.world)
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
            clear(folder.world)
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
            clear(folder.world)
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
                clear(folder.world)
                for name, picture in pictures.items():
                    picture.save(folder.root / f"{name}{ending}", exif=exif, **options)

                def right(done: Done) -> str | None:
                    same = bool((folder.rows() == upright).all())
                    return None if same else "is not turned as its EXIF says"

                return [tried(folder.world, *folder.command(), what=f"EXIF orientation {number}", right=right)]

            if ending == ".png" or number == 6:
                yield f"EXIF orientation {number} in {ending}", "EXIF orientation", run

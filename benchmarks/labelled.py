"""What benchmarks on a labelled folder of images have in common: their options, and where the images come from."""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def parser(description: str | None, *, seeds: int) -> argparse.ArgumentParser:
    """Begin a command line: DATA_DIR holds train/ and test/ of class folders."""
    begun = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    begun.add_argument("data_dir", type=Path)
    begun.add_argument("--backbone", default="vit_small_patch14_dinov2")
    begun.add_argument("--weights", default="pretrained")
    begun.add_argument("--img-size", type=int, default=224)
    begun.add_argument("--layers", default="4", help="of the caches that LoSA trains on")
    begun.add_argument("--rank", type=int, default=8)
    begun.add_argument("--epochs", type=int, default=25)
    begun.add_argument("--seeds", type=int, default=seeds)
    return begun


def source(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give the options of ``extract`` that say where images and weights come from."""
    return {"data_dir": str(arguments.data_dir), "weights": arguments.weights, "img_size": arguments.img_size}


def run(arguments: argparse.Namespace, compare: Callable[[argparse.Namespace, Path], None]) -> None:
    """Compare in a folder that is removed afterwards, with no cache of the user's in sight."""
    with tempfile.TemporaryDirectory(dir=".") as work:
        os.environ["LOSA_CACHE_HOME"] = str(Path(work) / "home")
        compare(arguments, Path(work))


def title(arguments: argparse.Namespace) -> str:
    """Name what is measured."""
    return f"{arguments.data_dir.name}: {arguments.backbone}, {arguments.epochs} epochs, rank {arguments.rank}"

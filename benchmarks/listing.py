"""Listing and fingerprint of many files, and what `losa-cache data` adds to it: seconds and peak memory.

    python benchmarks/listing.py --files 1000000 --folder /dev/shm
    python benchmarks/listing.py --files 100000 --folder /dev/shm --images   # JPEG files: also headers and duplicates

Files are made first: empty ones of different sizes (they take inodes, and no room), or small JPEG files. Each figure
is of a process of its own, that finds names and sizes in the kernel's memory; they are removed in the end.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

PARTS = {
    "imports": "",
    "listing and fingerprint": "samples = load_samples('folder', data_dir=root); print(len(samples), file=sys.stderr)",
    "data --look names": "survey('folder', data_dir=root, look='names')",
    "data": "survey('folder', data_dir=root)",
}
PROCESS = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from peak import peak_gigabytes
from losa_cache.data.load import load_samples
{more}
root = Path({root!r})
start, cpu = time.perf_counter(), time.process_time()
{part}
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
print(json.dumps(dict(seconds=round(seconds, 2), cpu_seconds=round(cpu, 2), peak_mb=round(1000 * peak_gigabytes()))))
"""


def make(root: Path, files: int, classes: int, *, images: bool) -> None:
    """Make class folders of files whose sizes differ."""
    for number in range(classes):
        folder = root / "train" / f"n{number:08d}"
        folder.mkdir(parents=True)
        for place in range(number, files, classes):
            path = folder / f"n{number:08d}_{place}.JPEG"
            if images:
                path.write_bytes(_image(place))
            else:
                path.touch()
                os.truncate(path, 1 + place * 7919 % 200_000)


def _image(seed: int) -> bytes:
    drawn = np.random.default_rng(seed)
    pixels = drawn.integers(0, 256, (drawn.integers(8, 40), drawn.integers(8, 40), 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG")
    return encoded.getvalue()


def remove(root: Path) -> None:
    """Remove the folder by a few threads' worth of plain calls."""
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(_remove_class, (root / "train").iterdir()))


def _remove_class(folder: Path) -> None:
    for entry in os.scandir(folder):
        os.unlink(entry.path)
    folder.rmdir()


def main() -> None:
    """Measure every part."""
    begun = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    begun.add_argument("--files", type=int, default=1_000_000)
    begun.add_argument("--classes", type=int, default=1000)
    begun.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the files are made")
    begun.add_argument("--images", action="store_true", help="make JPEG files, and look into them, too")
    begun.add_argument("--repeats", type=int, default=3)
    begun.add_argument("--only", help="parts whose names contain this")
    given = begun.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as work:
        root = Path(work) / "data"
        make(root, given.files, given.classes, images=given.images)
        for name, part in PARTS.items():
            if (name == "data" and not given.images) or (given.only and given.only not in name):
                continue
            for _ in range(given.repeats):
                more = "from losa_cache.data.survey import survey" if "survey" in part else ""
                code = PROCESS.format(here=str(Path(__file__).parent), root=str(root), part=part, more=more)
                done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
                line = {"part": name, "files": given.files} | json.loads(done.stdout.splitlines()[-1])
                print(json.dumps(line), flush=True)
        remove(root)


if __name__ == "__main__":
    main()

"""Decoding the same images from a folder, a table, a Hugging Face data set, tar shards and a zip file: images/s.

    python benchmarks/archives.py [--images 1000] [--workers 2] [--repeats 5]

Synthetic 480 x 360 JPEGs to 224 px, in the random order of an extraction; every road is taken in each round, and the
share of the folder's speed is the median over the rounds. Listing is the time to open the data set. ``datasets`` must
be installed.
"""

import argparse
import io
import statistics
import tarfile
import tempfile
import zipfile
from pathlib import Path
from time import perf_counter, process_time

import datasets
from stages import make_images

from losa_cache.data.decode import Decoder, View
from losa_cache.data.load import load_samples
from losa_cache.data.transforms import InputSpec
from losa_cache.inputs import permute

SPEC = InputSpec((3, 224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "center")
BATCH, AT_ONCE, SHARD = 64, 3, 250  # images of a batch, batches of a turn, images of a tar file


def pack(work: Path) -> dict[str, str]:
    """Write the images of ``folder`` in each other form; gives the names of the data sets."""
    folder = work / "folder"
    paths = sorted(folder.rglob("*.jpg"))
    names = sorted({path.parent.name for path in paths})
    (work / "shards").mkdir()
    for start in range(0, len(paths), SHARD):
        with tarfile.open(work / f"shards/{start // SHARD:03d}.tar", "w") as shard:
            for path in paths[start : start + SHARD]:
                shard.add(path, path.name)
                label = str(names.index(path.parent.name)).encode()
                info = tarfile.TarInfo(f"{path.stem}.cls")
                info.size = len(label)
                shard.addfile(info, io.BytesIO(label))
    with zipfile.ZipFile(work / "images.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.relative_to(folder))
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    columns = {"image": images, "label": [path.parent.name for path in paths]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(work / "hf")
    rows = [f"folder/{path.relative_to(folder)},{path.parent.name}" for path in paths]
    (work / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    return {
        "folder": str(folder),
        "table": f"table:{work / 'labels.csv'}",
        "Hugging Face": f"hf:{work / 'hf'}",
        "WebDataset": f"wds:{work / 'shards'}",
        "zip": f"zip:{work / 'images.zip'}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=".") as work:
        make_images(Path(work) / "folder", arguments.images)
        listing, decoders = {}, {}
        for road, name in pack(Path(work).absolute()).items():
            started = perf_counter()
            samples = load_samples(name)
            listing[road] = perf_counter() - started
            decoders[road] = Decoder(samples, SPEC, workers=arguments.workers, turn=True)
        order = permute(arguments.images, seed=0, limit=None).tolist()
        plan: list[list[View]] = [[(i, None) for i in order[at : at + BATCH]] for at in range(0, len(order), BATCH)]
        seconds = {road: [[0.0, 0.0] for _ in range(arguments.repeats + 1)] for road in decoders}
        for turn in range(arguments.repeats + 1):  # the first warms up
            for at in range(0, len(plan), AT_ONCE):  # in short turns: other work on the machine hits all alike
                for road in sorted(decoders, key=lambda road: hash((road, turn, at))):
                    began = perf_counter(), process_time()
                    for batch in decoders[road].batches(plan[at : at + AT_ONCE]):
                        assert not batch.failures
                    for place, now in enumerate((perf_counter(), process_time())):
                        seconds[road][turn][place] += now - began[place]
        for road, taken in seconds.items():
            wall, cpu = ([turn[place] for turn in taken[1:]] for place in (0, 1))
            shares = [folder[0] / own for own, folder in zip(wall, seconds["folder"][1:], strict=True)]
            print(
                f"{road:<14}{len(order) / statistics.median(wall):8.0f} images/s"
                f"{1000 * statistics.median(cpu) / len(order):8.2f} ms of CPU an image"
                f"{statistics.median(shares):8.3f} of the folder's speed{1000 * listing[road]:8.0f} ms to open"
            )
        for decoder in decoders.values():
            decoder.close()


if __name__ == "__main__":
    main()

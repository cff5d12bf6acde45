"""Decoding of greys of more than 8 bits beside that of JPEG, to 224 px: images a second of CPU time.

    python benchmarks/decode_deep.py [--images 32] [--size 512] [--repeats 5]

The same smooth random scans are stored in each format, and all formats are decoded in turn, on one thread; medians. The
range is that of the file, the window of DICOM, or percentiles. Needs the extra ``medical``.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from time import process_time

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from losa_cache.data.picture import load_image
from losa_cache.data.pixel_rules import AS_DECLARED, PixelRules, parse_rules
from losa_cache.data.transforms import InputSpec

SPEC = InputSpec((3, 224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "center")
PERCENTILE = parse_rules("percentile", None, 1, False)
RULES = {
    "JPEG": AS_DECLARED,
    "8-bit PNG": AS_DECLARED,
    "16-bit PNG": AS_DECLARED,
    "16-bit PNG, percentile": PERCENTILE,
    "16-bit TIFF": AS_DECLARED,
    "16-bit TIFF, percentile": PERCENTILE,
    "12-bit DICOM, window": AS_DECLARED,
    "12-bit DICOM, percentile": PERCENTILE,
}


def make(folder: Path, size: int, number: int) -> dict[str, Path]:
    """Write one scan in every format."""
    noise = np.random.default_rng(number).random((size // 8, size // 8)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)).clip(0, 1)
    eight, sixteen = (np.rint(smooth * white).astype(kind) for white, kind in ((255, np.uint8), (65535, np.uint16)))
    paths = {name: folder / f"{number}.{name}" for name in ("jpg", "8.png", "16.png", "tif", "dcm")}
    Image.fromarray(eight).convert("RGB").save(paths["jpg"], quality=90)
    Image.fromarray(eight).save(paths["8.png"])
    Image.fromarray(sixteen).save(paths["16.png"])
    Image.fromarray(sixteen).save(paths["tif"], compression=None)
    dicom(paths["dcm"], sixteen >> 4)
    files = [paths[name] for name in ("jpg", "8.png", "16.png", "16.png", "tif", "tif", "dcm", "dcm")]
    return dict(zip(RULES, files, strict=True))


def dicom(path: Path, values: NDArray[np.uint16]) -> None:
    """Write 12 bits in Hounsfield units, with a window."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.set_pixel_data(values, "MONOCHROME2", 12)
    data.RescaleSlope, data.RescaleIntercept, data.WindowCenter, data.WindowWidth = 1, -1024, 40, 400
    data.save_as(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    transform = SPEC.transform()

    def decode(paths: list[Path], rules: PixelRules) -> None:
        for path in paths:
            transform(load_image(path, rules))

    with tempfile.TemporaryDirectory(dir=".") as work:
        scans = [make(Path(work), arguments.size, number) for number in range(arguments.images)]
        seconds: dict[str, list[float]] = {name: [] for name in RULES}
        for _ in range(arguments.repeats + 1):
            for name, rules in RULES.items():
                started = process_time()
                decode([scan[name] for scan in scans], rules)
                seconds[name].append(process_time() - started)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first loads libraries
    for name, time in medians.items():
        print(f"{name:<28}{arguments.images / time:8.0f} images/s{medians['JPEG'] / time:8.2f} x JPEG")


if __name__ == "__main__":
    main()

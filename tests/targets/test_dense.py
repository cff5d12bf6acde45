"""Masks and depth maps: they lie under their images, whatever these go through."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import losa_cache as lc
from losa_cache.data.load import load_samples
from losa_cache.data.picture import load_image, upright
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.targets.frame import Frames
from losa_cache.targets.pictures import read_depth, read_mask
from losa_cache.targets.read import open_source, read_targets
from tests.conftest import tiny_backbone

COLOURS = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], dtype=np.uint8)
PLAIN = InputSpec((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "center")
SPECS = {"crop": PLAIN, "exact": PLAIN.resized("exact"), "border": replace(PLAIN, crop_mode="border", crop_pct=1.0)}


def blocks(width, height, seed):
    """Class numbers in blocks of 10 x 10 pixels."""
    coarse = np.random.default_rng(seed).integers(0, 3, (-(-height // 10), -(-width // 10)))
    return np.kron(coarse, np.ones((10, 10), np.uint8))[:height, :width].astype(np.uint8)


def save(path, picture, orientation=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_a_mask_lies_under_the_pixels_of_its_image(tmp_path, spec, orientation):
    """The image is painted by its mask: after both transforms, the colour of each pixel still names its class."""
    mask = blocks(97, 61, seed=orientation)
    save(tmp_path / "images/a/1.png", Image.fromarray(COLOURS[mask]), orientation)
    save(tmp_path / "masks/1.png", Image.fromarray(mask))
    samples = load_samples(str(tmp_path / "images"))
    frames = Frames(samples, SPECS[spec], upright=True)
    found = read_targets(open_source(tmp_path / "masks"), samples.ids, frames=frames).values[0]
    shown = SPECS[spec].transform()(upright(load_image(tmp_path / "images/a/1.png"))).numpy()
    seen = shown.argmax(0)
    clear = np.partition(shown, 1, axis=0)[1] < 60  # bicubic mixes neighbours along edges
    inside = found != 255
    assert (clear & inside).mean() > 0.4
    assert (seen == found)[clear & inside].mean() > 0.995
    assert (seen == np.roll(found, 1, axis=1))[clear & inside].mean() < 0.97  # a pixel aside would be seen
    assert inside.all() == (spec != "border")
    if orientation > 4:  # a mask that was turned already is of the other size
        painted = np.asarray(upright(load_image(tmp_path / "images/a/1.png"))).argmax(-1)
        save(tmp_path / "turned/1.png", Image.fromarray(painted.astype(np.uint8)))
        turned = read_targets(open_source(tmp_path / "turned"), samples.ids, frames=frames).values[0]
        np.testing.assert_array_equal(turned, found)


def test_a_crop_without_a_resize_is_that_part_of_the_mask(tmp_path):
    mask = blocks(40, 36, seed=0)
    save(tmp_path / "images/a/1.png", Image.fromarray(COLOURS[mask]))
    (tmp_path / "depth").mkdir()
    depth = np.where(mask == 1, 0, mask + 0.5 + np.arange(40) / 100).astype(np.float32)
    np.save(tmp_path / "depth/1.npy", depth)
    samples = load_samples(str(tmp_path / "images"))
    spec = replace(PLAIN, crop_pct=32 / 36)
    source = open_source(tmp_path / "depth", task="depth")
    found = read_targets(source, samples.ids, frames=Frames(samples, spec, upright=False))
    expected = torch.from_numpy(depth)[2:34, 4:36].numpy()
    np.testing.assert_array_equal(found.values[0], np.where(expected == 0, np.nan, expected))
    assert (found.kind, list(found.names)) == ("depth", ["depth"])


def palette(values):
    picture = Image.fromarray(values, mode="P")
    picture.putpalette([200, 10, 10] * 256)
    return picture


WRITTEN = {
    "grey": Image.fromarray,
    "palette": palette,
    "16 bits": lambda v: Image.fromarray(v.astype(np.uint16)),
}


@pytest.mark.parametrize("way", WRITTEN)
def test_class_numbers_are_read_as_they_were_written(tmp_path, way):
    values = blocks(30, 20, seed=3) + np.uint8(10)
    WRITTEN[way](values).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), values)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_greys_of_few_bits_are_numbers_too(tmp_path, bits):
    import struct
    import zlib

    values = np.arange(8, dtype=np.uint8)[None] % 2**bits
    packed = np.packbits(np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :].reshape(1, -1), axis=-1).tobytes()

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), values)


def test_depths_are_metres(tmp_path):
    metres = np.array([[1.5, 0, 65.535]], dtype=np.float32)
    Image.fromarray((metres * 1000).round().astype(np.uint16)).save(tmp_path / "d.png")
    Image.fromarray(metres).save(tmp_path / "d.tif")
    np.save(tmp_path / "d.npy", np.array([[1.5, np.inf, 65.535]]))
    for name in ("d.png", "d.tif", "d.npy"):
        np.testing.assert_array_equal(read_depth(tmp_path / name), np.where(metres > 0, metres, np.nan).astype("f4"))


def test_no_object_is_made_of_an_array_file(tmp_path):
    samples, frames = folder(tmp_path, {})
    (tmp_path / "masks").mkdir()
    for number in range(2):
        np.save(tmp_path / f"masks/{number}.npy", np.array([[print]]))
    with pytest.raises(UserError, match=r"'0.npy' .* cannot be read .*Python objects"):
        read_targets(open_source(tmp_path / "masks", task="depth"), samples.ids, frames=frames)


def folder(tmp_path, masks, names=None):
    for number in range(2):
        save(tmp_path / f"images/{number}.png", Image.new("RGB", (12, 10), (9 * number, 0, 0)))
    for name, picture in masks.items():
        save(tmp_path / "masks" / name, picture)
    if names is not None:
        (tmp_path / "masks/classes.txt").write_text(names)
    samples = load_samples(str(tmp_path / "images"))
    return samples, Frames(samples, PLAIN, upright=False)


def grey(*values, size=(12, 10)):
    pixels = np.zeros(size[::-1], np.uint8)
    pixels.flat[: len(values)] = values
    return Image.fromarray(pixels)


REFUSED = {
    "another size": (
        {"0.png": grey(1), "1.png": grey(1, size=(11, 10))},
        None,
        {},
        "'1.png' .* 11 x 10 pixels.* 12 x 10",
    ),
    "an unknown value": ({"0.png": grey(1), "1.png": grey(7)}, "a\nb", {}, "'1.png' .* value 7, .* --ignore 7"),
    "a colour": ({"0.png": grey(1), "1.png": Image.new("RGB", (12, 10))}, None, {}, "'1.png' .* mode RGB"),
    "a deep value": ({"0.png": Image.fromarray(np.full((10, 12), 300, np.uint16)), "1.png": grey()}, None, {}, "300"),
    "no class but 0": ({"0.png": grey(255), "1.png": grey()}, None, {}, "no class but 0"),
    "a missing mask": ({"0.png": grey(1)}, None, {}, "1 of 2 samples have no target .* '1.png'"),
    "a class twice": ({"0.png": grey(1), "1.png": grey()}, "a\na", {}, "classes.txt.*'a' is there twice"),
    "two masks": ({"0.png": grey(1), "1.png": grey(), "x/1.png": grey()}, None, {}, "1 samples that are not here"),
    "8 bits of depth": ({"0.png": grey(1), "1.png": grey(1)}, None, {"task": "depth"}, "mode L: a depth map has 16"),
    "a value beyond": ({"0.png": grey(1), "1.png": grey()}, None, {"ignore": 256}, "ignore is 256"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_sentence_with_its_value(tmp_path, case):
    masks, names, options, words = REFUSED[case]
    samples, frames = folder(tmp_path, masks, names)
    with pytest.raises(UserError, match=words) as told:
        read_targets(open_source(tmp_path / "masks", **options), samples.ids, frames=frames)
    assert str(told.value).count("\n") == 0


def test_masks_are_added_to_a_cache_of_the_images_in_its_order(tmp_path):
    masks = {"0.png": grey(1, 2, 11), "1.png": grey(*[2] * 120)}
    samples, _ = folder(tmp_path, masks, "sky\nroad\ncar")
    assert samples.classes == ("unlabelled",)  # images that lie in no class folders
    cache = extract(tiny_backbone(), samples, out=tmp_path / "c.zarr", precision="float32")
    with pytest.raises(UserError, match="was extracted from loaded images"):
        lc.add_targets(cache, tmp_path / "masks", ignore=11)
    kept = lc.add_targets(cache, tmp_path / "masks", ignore=11, dataset=samples)
    assert (kept.name, list(kept.names), kept.values.shape) == ("masks", ["sky", "road", "car"], (2, 8, 8))
    assert (kept.values[cache.sample_ids.index("1.png")] == 2).all()
    assert set(np.unique(kept.values[cache.sample_ids.index("0.png")])) <= {0, 1, 2, 255}
    other = load_samples(str(tmp_path / "masks"))
    with pytest.raises(UserError, match="was extracted from other images"):
        lc.add_targets(cache, tmp_path / "masks", dataset=other)
    views = extract(tiny_backbone(), samples, out=tmp_path / "v.zarr", precision="float32", views=2, augment="crop")
    with pytest.raises(UserError, match="of augmented views, and masks"):
        lc.add_targets(views, tmp_path / "masks", dataset=samples)

"""Pictures as their values and their metadata say, against numpy: greys of more than 8 bits, and eight orientations."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from losa_cache.data.clips import Clip
from losa_cache.data.decode import Decoder
from losa_cache.data.load import load_samples
from losa_cache.data.nvjpeg import DeviceImages
from losa_cache.data.picture import converted, load_image, upright
from losa_cache.data.pixel_rules import parse_rules
from losa_cache.data.samples import from_files
from losa_cache.data.transforms import InputSpec
from losa_cache.data.video import read_clip
from tests.data.videos import numbered, write_video

SPEC = InputSpec((3, 24, 24), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "squash")


def tiff(
    values: np.ndarray, *, bits: int, kind: int = 1, photometric: int = 1, big: bool = False, **more: int
) -> bytes:
    """One uncompressed strip of greys, by the TIFF 6.0 specification; ``kind``: 1 unsigned, 2 signed, 3 float.

    ``more`` tags by name: ``planes``, ``orientation``.
    """
    height, width = values.shape[0], values.shape[1] * values.itemsize * 8 // bits
    order, data = "><"[not big], values.astype(values.dtype.newbyteorder("><"[not big])).tobytes()
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height, 339: kind}
    entries |= {{"orientation": 274, "planes": 284}[name]: value for name, value in more.items()}
    entries |= {273: 8 + 2 + 12 * (len(entries) + 2) + 4, 279: len(data)}
    body = b"".join(
        struct.pack(f"{order}HHI", tag, 4, 1) + struct.pack(f"{order}I", value)
        for tag, value in sorted(entries.items())
    )
    mark = b"MM\0*" if big else b"II*\0"
    return mark + struct.pack(f"{order}IH", 8, len(entries)) + body + b"\0\0\0\0" + data


def png(values: np.ndarray, colour: int) -> bytes:
    """16 bits a channel; ``colour``: 0 grey, 2 RGB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def twelve_bits(values: np.ndarray) -> np.ndarray:
    """Two values in three bytes."""
    even, odd = values[:, ::2].astype(int), values[:, 1::2].astype(int)
    return (
        np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], axis=2).reshape(len(values), -1).astype(np.uint8)
    )


def saved(values: np.ndarray, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, form)
    return file.getvalue()


SHADES = np.random.default_rng(0).integers(0, 65536, (6, 8)).astype(np.uint16)
SHADES[0, :4] = 0, 65535, 128, 129
TWELVE, TEN = SHADES >> 4, SHADES >> 6
GREYS = {
    "png": (png(SHADES, 0), SHADES / 65535),
    "tiff little": (tiff(SHADES, bits=16), SHADES / 65535),
    "tiff big": (tiff(SHADES, bits=16, big=True), SHADES / 65535),
    "tiff white is zero": (tiff(SHADES, bits=16, photometric=0), 1 - SHADES / 65535),
    "tiff 12 bits": (tiff(twelve_bits(TWELVE), bits=12), TWELVE / 4095),
    "tiff deflate": (saved(SHADES, "TIFF"), SHADES / 65535),
    "jpeg 2000": (saved(SHADES, "JPEG2000"), SHADES / 65535),
    "pgm 65535": (b"P5 8 6 65535\n" + SHADES.astype(">u2").tobytes(), SHADES / 65535),
    "pgm 4095": (b"P5 8 6 4095\n" + TWELVE.astype(">u2").tobytes(), TWELVE / 4095),
    "pgm 1023": (b"P5 8 6 1023\n" + TEN.astype(">u2").tobytes(), TEN / 1023),
    "pgm 1000": (b"P5 8 6 1000\n" + (TEN % 1001).astype(">u2").tobytes(), TEN % 1001 / 1000),
    "pgm in digits": (b"P2 8 6 4095\n" + b" ".join(b"%d" % value for value in TWELVE.flat), TWELVE / 4095),
}


@pytest.mark.parametrize("form", GREYS)
def test_greys_of_more_than_8_bits_are_those_of_the_same_scan_in_8_bits(tmp_path, form):
    content, shades = GREYS[form]
    path = tmp_path / "a.png"  # what a file holds decides, not its name
    path.write_bytes(content)
    found = load_image(path)
    assert found.mode == "L"
    np.testing.assert_allclose(np.asarray(found), shades * 255, atol=0.51)
    for mode, channels in (("RGB", 3), ("L", 1)):
        pixels = np.asarray(converted(found, mode)).reshape(6, 8, channels)
        assert (pixels == np.asarray(found)[:, :, None]).all()


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_pictures_in_memory_too(mode):
    values = np.asarray([[0, 65535, 256, 40000]], dtype=">u2" if mode == "I;16B" else "<u2")
    image = Image.frombytes(mode, (4, 1), values.tobytes())
    pixels = np.asarray(converted(image, "RGB"))[0, :, 0]
    np.testing.assert_allclose(pixels, values[0] / 257, atol=0.51)


COLOURS = np.stack([SHADES, SHADES[::-1], SHADES[:, ::-1]], axis=2)


@pytest.mark.parametrize(
    "content",
    [png(COLOURS, 2), b"P6 8 6 65535\n" + COLOURS.astype(">u2").tobytes()],
    ids=["png", "ppm"],
)
def test_colours_of_16_bits(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    np.testing.assert_allclose(np.asarray(load_image(tmp_path / "a.png")), COLOURS / 257, atol=1)


FLOATS, SIGNED = (SHADES / 65535).astype(np.float32), (SHADES.astype(int) - 32768).astype(np.int16)
RANGES = {  # by data type, and as values of 0 to 1
    "float to 1": (tiff(FLOATS, bits=32, kind=3), FLOATS),
    "pfm": (b"Pf 8 6\n-1.0\n" + FLOATS[::-1].astype("<f4").tobytes(), FLOATS),
    "u32": (tiff(SHADES.astype(np.uint32) * 65537, bits=32), SHADES / 65535),
    "s32": (tiff(((SHADES.astype(int) - 32768) * 65536).astype(np.int32), bits=32, kind=2), SHADES / 65535),
    "s16": (tiff(SIGNED, bits=16, kind=2), SHADES / 65535),
    "s8": (tiff((SIGNED // 256).astype(np.int8), bits=8, kind=2), (SHADES // 256) / 255),
}


@pytest.mark.parametrize("form", RANGES)
def test_other_types_are_read_by_their_whole_range(tmp_path, form):
    content, shades = RANGES[form]
    (tmp_path / "a.tif").write_bytes(content)
    np.testing.assert_allclose(np.asarray(load_image(tmp_path / "a.tif")), shades * 255, atol=0.51)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff((SHADES / 257).astype(np.float32), bits=32, kind=3), "floating-point values from 0 to 255, not"),
        (tiff(FLOATS / 20, bits=32, kind=3), r"in a sixteenth of what its file can hold \(0 to 1\)"),
        (tiff(SHADES.astype(np.int32) * 9, bits=32, kind=2), r"such as 0\.\.1048575$"),
        (tiff(SIGNED // 20, bits=16, kind=2), r"such as -1639\.\.1638$"),
    ],
    ids=["float to 255", "float to 0.05", "s32", "s16"],
)
def test_values_that_hardly_use_their_type_are_refused_with_the_way_out(tmp_path, content, reason):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{reason}.*") as caught:
        load_image(tmp_path / "x/a.png")
    assert "black and white with --range" in str(caught.value)
    (found,) = decoded(load_samples(str(tmp_path)))
    assert str(caught.value) in found.failures[0][1]


def test_16_bits_that_may_be_12_are_refused_unless_the_options_say_dtype(tmp_path):
    contents = {"grey": png(TWELVE, 0), "colour": png(COLOURS >> 4, 2), "tiff": tiff(TWELVE, bits=16)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"between 0 and [34]\d{3}, .*such as 0\.\.4095, or .* --range dtype$"):
            load_image(tmp_path / name, parse_rules(None, None, 1, False))
        taken = [load_image(tmp_path / name, parse_rules(text, None, 1, False)) for text in ("dtype", "0..4095")]
        dark, light = (np.asarray(own).astype(float) for own in taken)
        np.testing.assert_allclose(dark, light / 16, atol=1.1)
    (tmp_path / "black").write_bytes(png(np.zeros((6, 8), np.uint16), 0))
    assert not np.asarray(load_image(tmp_path / "black", parse_rules(None, None, 1, False))).any()


def test_pictures_of_8_bits_are_untouched(tmp_path):
    for mode in ("RGB", "L", "1", "P", "LA", "RGBA", "CMYK"):
        path = tmp_path / f"{mode}.tif"
        image = Image.fromarray(COLOURS.astype(np.uint8)).convert(mode)
        image.save(path)
        found = load_image(path)
        assert found.mode == mode
        assert converted(found, "RGB").tobytes() == image.convert("RGB").tobytes()
    animated = tmp_path / "a.gif"
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 200)]
    frames[0].save(animated, save_all=True, append_images=frames[1:])
    assert (np.asarray(converted(load_image(animated), "L")) == 10).all()


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="no regular file"):
        load_image(tmp_path / "a.png")


# EXIF 2.3, tag 0x0112: where row 0 and column 0 of what is stored lie in the picture
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def seen(stored: np.ndarray, number: int) -> np.ndarray:
    """Put rows and columns where EXIF says that they lie."""
    row, column = SIDES[number]
    if row in ("left", "right"):
        stored, row, column = stored.swapaxes(0, 1), column, row
    return stored[:: -1 if row == "bottom" else 1, :: -1 if column == "right" else 1]


FORMS = {"jpg": {"quality": 95}, "png": {}, "webp": {"lossless": True}, "tif": {}}


def oriented(path, number, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = number
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (5, 4, 3), dtype=np.uint8))
    image.resize((40, 28), Image.Resampling.BICUBIC).save(path, exif=exif, **options)


def decoded(samples, **options):
    decoder = Decoder(samples, SPEC, workers=1, **options)
    try:
        return list(decoder.batches([[(i, None) for i in range(len(samples))]]))
    finally:
        decoder.close()


@pytest.mark.parametrize("number", SIDES)
@pytest.mark.parametrize("form", FORMS)
def test_every_orientation_in_every_format(tmp_path, form, number):
    path, plain = tmp_path / f"x/a.{form}", tmp_path / f"b.{form}"
    oriented(path, number, **FORMS[form])
    oriented(plain, 1, **FORMS[form])
    stored = np.asarray(Image.open(plain))
    assert np.array_equal(np.asarray(upright(load_image(path))), seen(stored, number))
    samples = load_samples(str(tmp_path))
    for turn in (True, False):
        expected = seen(stored, number) if turn or form == "tif" else stored  # Pillow itself turns TIFF
        (batch,) = decoded(samples, turn=turn)
        assert torch.equal(batch.pixels[0], SPEC.transform()(Image.fromarray(expected)))


@pytest.mark.parametrize("number", SIDES)
def test_pictures_that_the_device_decodes_are_turned_alike(tmp_path, number):
    oriented(tmp_path / "x/a.jpg", number, quality=95)
    samples = load_samples(str(tmp_path))
    for turn in (True, False):
        images = DeviceImages(samples, SPEC, torch.device("cpu"), turn=turn)
        pixels, left = images.decode([images.read(0)])
        (pillow,) = decoded(samples, turn=turn)
        assert not left
        assert (pixels.int() - pillow.pixels.int()).abs().max() <= 3


def test_16_bit_pictures_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(SHADES).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(np.asarray(upright(load_image(tmp_path / "a.png"))), seen(SHADES, 6) / 257, atol=0.51)


@pytest.mark.parametrize("number", SIDES)
def test_uncompressed_greys_are_turned_too(tmp_path, number):
    for bits, values in ((16, SHADES), (8, np.rint(SHADES / 257).astype(np.uint8))):
        (tmp_path / "a.tif").write_bytes(tiff(values, bits=bits, orientation=number))
        found = np.asarray(upright(load_image(tmp_path / "a.tif")))
        np.testing.assert_allclose(found, seen(SHADES, number) / 257, atol=0.51)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_broken_metadata_does_not_spoil_a_picture(tmp_path):
    oriented(tmp_path / "whole.jpg", 6)
    content = (tmp_path / "whole.jpg").read_bytes()
    at = content.index(b"Exif\0\0") + 6
    for number, junk in enumerate((b"\xff" * 12, b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\0")):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(content[:at] + junk + content[at + len(junk) :])
        assert upright(load_image(path)).size == (40, 28)
    oriented(tmp_path / "9.jpg", 9)
    assert upright(load_image(tmp_path / "9.jpg")).size == (40, 28)


# rotation counter-clockwise, then a mirror: as VideoStream.set_display_rotation says
ROTATIONS = [(degrees, mirror) for degrees in (0, 90, 180, 270) for mirror in (False, True)]


@pytest.mark.parametrize(("degrees", "mirror"), ROTATIONS)
def test_videos_are_turned_as_their_display_matrix_says(tmp_path, degrees, mirror):
    path = write_video(tmp_path / "x/a.mp4", 7, first=4, rotation=(degrees, mirror))
    expected = np.rot90(numbered(7), degrees // 90)
    expected = expected[:, ::-1] if mirror else expected
    (frame,) = read_clip(path, Clip(1))
    assert frame.size == (64, 48)
    found = np.asarray(upright(frame))
    assert found.shape == expected.shape
    assert ((found > 127) == (expected > 127)).mean() > 0.99
    samples = load_samples(str(tmp_path))
    for turn in (True, False):
        (batch,) = decoded(samples, turn=turn)
        shown = Image.fromarray(found) if turn else frame
        assert torch.equal(batch.pixels[0], SPEC.transform()(shown))


def test_a_list_names_each_file_once(tmp_path):
    with pytest.raises(Exception, match="lists 'a.png' twice"):
        from_files("x", "train", ["a"], tmp_path, [("a.png", 0), ("a.png", 0)])

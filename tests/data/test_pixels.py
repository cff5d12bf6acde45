"""Rules of pixels against numpy and formulas: ranges, channels, pages and colour profiles."""

import struct
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image, UnidentifiedImageError

from losa_cache.data.normalisation import NORMALISATIONS
from losa_cache.data.picture import load_image, upright
from losa_cache.data.pixel_rules import PixelRules, parse_rules
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError
from tests.data.test_picture import png

BANDS = np.random.default_rng(0).integers(0, 65536, (6, 8, 5)).astype(np.uint16)
BYTES = (BANDS >> 8).astype(np.uint8)


def rules(text=None, channels=None, page=1, profile=False):
    return parse_rules(text, channels, page, profile)


def scaled(values, low, high):
    return ((values.astype(float) - low) / (high - low)).clip(0, 1) * 255


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("max",), "range is 'max': write dtype, min-max"),
        (("1..1",), "range is '1..1'"),
        (("1%..2",), "range is '1%..2'"),
        (("0..nan",), "range is '0..nan'"),
        (("0%..101%",), "percentiles lie between 0 and 100"),
        ((None, "1,2"), "channels is '1,2': name one channel, or three"),
        ((None, "0"), "channels is '0'"),
        ((None, "1" * 5000), "channels is '1"),
        ((None, None, 0), "page is 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        rules(*options)


@pytest.mark.parametrize(
    "options", [(), ("dtype",), ("percentile", "4"), ("min-max",), ("-160..240.5", "4,3,2", 3, True)]
)
def test_rules_come_back_from_options_and_from_the_fields_of_a_cache(options):
    given = rules(*options)
    written = given.options()
    assert parse_rules(written["range"], written["channels"], written["page"], written["apply_profile"]) == given
    fields = {"pixels": given.fields()} if given.fields() else {}
    restored = PixelRules.from_fields(fields)
    assert (restored.fields(), restored.checked) == (given.fields(), False)


@pytest.mark.parametrize("form", ["png", "tiff", "planes"])
@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("min-max", lambda values: (values.min(), values.max())),
        ("percentile", lambda values: np.percentile(values, (1, 99))),
        ("25%..50%", lambda values: np.percentile(values, (25, 50))),
        ("1000..40000", lambda values: (1000, 40000)),
    ],
)
def test_a_range_takes_all_bits_of_colours(tmp_path, form, text, limits):
    colours = BANDS[..., :3]
    path = tmp_path / "a"
    if form == "png":
        path.write_bytes(png(colours, 2))
    elif form == "tiff":
        tifffile.imwrite(path, colours, photometric="rgb", compression="zlib")
    else:
        tifffile.imwrite(path, np.moveaxis(colours, -1, 0), photometric="rgb", planarconfig="separate")
    expected = scaled(colours, *limits(colours))
    np.testing.assert_allclose(np.asarray(load_image(path, rules(text))), expected, atol=0.51)


def test_values_that_are_no_numbers_are_black_and_leave_the_range_alone(tmp_path):
    values = np.array([[np.nan, np.inf, -np.inf, -3.0, 5.0, 1.0]], dtype=np.float32)
    tifffile.imwrite(tmp_path / "a", values)
    assert np.asarray(load_image(tmp_path / "a", rules("min-max"))).tolist() == [[0, 255, 0, 0, 255, 128]]


@pytest.mark.parametrize("values", [BANDS, BYTES], ids=["16", "8"])
def test_channels_are_those_that_are_named(tmp_path, values):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
    whole = 2 ** (8 * values.itemsize) - 1
    found = np.asarray(load_image(path, rules(channels="4,3,2")))
    np.testing.assert_allclose(found, values[..., [3, 2, 1]] / whole * 255, atol=0.51)
    found = load_image(path, rules("min-max", "5"))
    limits = (values[..., 4].min(), values[..., 4].max())
    assert found.mode == "L"
    np.testing.assert_allclose(np.asarray(found), scaled(values[..., 4], *limits), atol=0.51)
    with pytest.raises(ValueError, match="5 channels and does not say which are its colours: .*--channels"):
        load_image(path)
    with pytest.raises(ValueError, match=r"5 channels, and no channel 6 \(--channels\)"):
        load_image(path, rules(channels="6"))
    greys = [Image.new(mode, (4, 4)) for mode in ("L", "L", "I;16")]
    for first in (greys[0], greys[2]):  # of 8 bits and of 16
        first.save(tmp_path / "pages.tif", save_all=True, append_images=greys[:2])
        with pytest.raises(ValueError, match=r"1 channel, and no channel 4 \(--channels\); it has 3 pages, .* --page"):
            load_image(tmp_path / "pages.tif", rules(channels="4"))
    tifffile.imwrite(path, values[..., :4], photometric="rgb", extrasamples=["unspecified"])  # as near infrared is
    np.testing.assert_allclose(np.asarray(load_image(path)), values[..., :3] / whole * 255, atol=1)
    found = np.asarray(load_image(path, rules(channels="4,1,2")))
    np.testing.assert_allclose(found, values[..., [3, 0, 1]] / whole * 255, atol=0.51)


def test_channels_of_pictures_of_8_bits(tmp_path):
    cases = {
        "LA": (BYTES[..., :2], {"1": BYTES[..., 0], "2": BYTES[..., 1]}),
        "RGBA": (BYTES[..., :4], {"4": BYTES[..., 3], "3,2,1": BYTES[..., [2, 1, 0]]}),
        "CMYK": (BYTES[..., :4], {"4": BYTES[..., 3]}),
        "L": (BYTES[..., 0], {"1,2,3": BYTES[..., 0], "2": BYTES[..., 0]}),
    }
    for mode, (stored, expected) in cases.items():
        path = tmp_path / f"{mode}.tif"
        Image.fromarray(stored, mode).save(path)
        for channels, values in expected.items():
            assert np.array_equal(np.asarray(load_image(path, rules(channels=channels))), values), (mode, channels)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=1)
    assert np.asarray(load_image(tmp_path / "p.png", rules(channels="3"))).tolist() == [[30, 60]]
    assert np.asarray(load_image(tmp_path / "p.png", rules(channels="4"))).tolist() == [[255, 0]]
    assert np.asarray(load_image(tmp_path / "p.png").convert("RGB")).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    Image.new("1", (2, 1), 1).save(tmp_path / "1.png")
    assert np.asarray(load_image(tmp_path / "1.png", rules(channels="1"))).tolist() == [[255, 255]]


def test_pages_frames_and_the_orientation_of_what_tifffile_reads(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(BANDS, -1, 0), photometric="minisblack")
    for page in (1, 5):
        found = np.asarray(load_image(tmp_path / "a.tif", rules(page=page)))
        np.testing.assert_allclose(found, BANDS[..., page - 1] / 257, atol=0.51)
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (10, 200)]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert np.asarray(load_image(tmp_path / name, rules(page=2)).convert("RGB"))[0, 0].tolist() == [200, 0, 0]
        with pytest.raises(ValueError, match=r"2 pages, and no page 3 \(--page\)"):
            load_image(tmp_path / name, rules(page=3))
    turned = tmp_path / "b.tif"
    tifffile.imwrite(turned, BANDS[..., :3], photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    plain, ranged = (np.asarray(upright(load_image(turned, rules(text)))) for text in ("dtype", "0..65535"))
    np.testing.assert_allclose(plain, ranged.astype(float), atol=1)
    np.testing.assert_allclose(ranged, np.rot90(BANDS[..., :3], -1) / 257, atol=0.51)


def icc(space: bytes, kind: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2 (ICC.1:2001-04, section 6)."""
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", place + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", place + len(body), b"lcms", 0x02400000, kind, space, pcs) + b"\0" * 12 + b"acsp"
    head = head.ljust(68, b"\0") + struct.pack(">iii", 63190, 65536, 54061)  # the illuminant D50
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def srgb(linear):
    """IEC 61966-2-1, from light of 0 to 1 to values of 0 to 255."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


EXPONENT = 461 / 256  # near 1.8
GREY = icc(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": b"curv" + struct.pack(">IIH", 0, 1, 461)})
"""Greys of which a power is the light."""
IDENTITY = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
RAMP = bytes(range(256))
NODES = b"".join(bytes([0 if node & 1 else 255, 128, 128]) for node in range(16))  # of C, M, Y and K, which is the last
BLACK_INK = icc(
    b"CMYK",
    b"prtr",
    b"Lab ",
    {b"A2B0": b"mft1" + bytes([0, 0, 0, 0, 4, 3, 2, 0]) + IDENTITY + RAMP * 4 + NODES + RAMP * 3},
)
"""An ink of which the lightness L* of CIE 1976 is 100 (1 - K), whatever the other inks."""


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_colour_profile_is_followed_if_that_is_asked(tmp_path, mode):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    if mode == "L":
        image, profile, light = Image.fromarray(values), GREY, (values / 255) ** EXPONENT
    else:
        others = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        image, profile = Image.fromarray(np.dstack([others, values]), "CMYK"), BLACK_INK
        lightness = 100 * (1 - values / 255)
        light = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    image.save(tmp_path / "a.tif", icc_profile=profile)
    found = np.asarray(load_image(tmp_path / "a.tif", rules(profile=True)).convert("RGB")).astype(float)
    np.testing.assert_allclose(found, np.repeat(srgb(light)[..., None], 3, axis=2), atol=3)
    assert load_image(tmp_path / "a.tif").tobytes() == image.tobytes()
    Image.new("RGB", (4, 4), (9, 99, 200)).save(tmp_path / "b.png", icc_profile=profile)  # of other colours: no use
    assert load_image(tmp_path / "b.png", rules(profile=True)).getpixel((0, 0)) == (9, 99, 200)
    image.save(tmp_path / "c.tif", icc_profile=profile[:150])
    with pytest.raises(ValueError, match="colour profile cannot be used .* leave out --apply-profile"):
        load_image(tmp_path / "c.tif", rules(profile=True))


def test_a_damaged_tiff_is_no_image(tmp_path, monkeypatch):
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(500))
    with pytest.raises(UnidentifiedImageError, match=r"cannot identify image file '.*a\.tif'"):
        load_image(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", BANDS, photometric="minisblack", planarconfig="contig")
    with pytest.raises(ValueError, match=r"8 x 6 pixels, more than 40 \(--max-pixels\)"):
        load_image(tmp_path / "b.tif", rules(channels="1"), max_pixels=40)
    monkeypatch.setitem(sys.modules, "tifffile", None)  # as where it is not installed
    for name in ("a.tif", "b.tif"):
        with pytest.raises(ValueError, match=r"and tifffile may: pip install 'losa-cache\[medical\]'$"):
            load_image(tmp_path / name)


def test_normalisations_are_those_of_timm():
    from timm.data import constants

    names = {"imagenet": "IMAGENET_DEFAULT", "inception": "IMAGENET_INCEPTION", "clip": "OPENAI_CLIP"}
    for name, theirs in names.items():
        assert NORMALISATIONS[name] == (getattr(constants, f"{theirs}_MEAN"), getattr(constants, f"{theirs}_STD"))
    grey = InputSpec((1, 8, 8), (0.3,), (0.2,), "bicubic", 1.0, "center")
    assert grey.normalised("timm") == grey
    assert (grey.normalised("none").mean, grey.normalised("none").std) == ((0.0,), (1.0,))
    with pytest.raises(UserError, match="normalise is 'clip', which is for three channels, and the backbone takes 1"):
        grey.normalised("clip")
    with pytest.raises(UserError, match="unknown normalisation 'imgnet': choose one of timm, .*nearest: imagenet"):
        grey.normalised("imgnet")

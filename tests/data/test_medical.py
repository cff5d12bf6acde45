"""DICOM and NIfTI files against the equations of their standards and the arrays that they were written from."""

import io
import re
import sys
import zipfile

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)

import losa_cache as lc
from losa_cache import outside
from losa_cache.apply.predict.inputs import items
from losa_cache.data import medical
from losa_cache.data.decode import Decoder
from losa_cache.data.load import load_samples
from losa_cache.data.picture import load_image, stored_frame
from losa_cache.data.pixel_rules import PixelRules, parse_rules
from losa_cache.data.survey import survey
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError

GREYS = np.random.default_rng(0).integers(0, 4096, (2, 6, 8)).astype(np.uint16)
HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -1024}
CHECKED = PixelRules(checked=True)


def dicom(path, values, photometric="MONOCHROME2", bits=12, compression=None, **elements):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    data.set_pixel_data(values, photometric, bits)
    for name, value in elements.items():
        setattr(data, name, value)
    if compression == RLELossless:
        data.compress(RLELossless)
    elif compression is not None:
        meta.TransferSyntaxUID, data.PixelData = compression, encapsulate([elements["PixelData"]])
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path)
    return path


def ramp(values, low, high):
    return ((values.astype(float) - low) / (high - low)).clip(0, 1) * 255


def sequence(**elements):
    item = FileDataset(None, {})
    for name, value in elements.items():
        setattr(item, name, value)
    return [item]


def window(values, centre, width):
    """PS3.3, section C.11.2.1.2.1."""
    return ramp(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


CT = GREYS[0].astype(float) - 1024
CASES = {
    "bits stored": ({}, None, ramp(GREYS[0], 0, 4095)),
    "inverted": ({"photometric": "MONOCHROME1"}, None, 255 - ramp(GREYS[0], 0, 4095)),
    "rescaled": (HOUNSFIELD, None, ramp(GREYS[0], 0, 4095)),
    "first window": (HOUNSFIELD | {"WindowCenter": [40, 600], "WindowWidth": [400, 99]}, None, window(CT, 40, 400)),
    "no value in the window": ({"WindowCenter": None, "WindowWidth": None}, None, ramp(GREYS[0], 0, 4095)),
    "no value in the slope": (
        {"RescaleSlope": None, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400},
        None,
        window(CT, 40, 400),
    ),
    "range over a window": (HOUNSFIELD | {"WindowCenter": 40, "WindowWidth": 400}, "-160..240", ramp(CT, -160, 240)),
    "compressed": ({"compression": RLELossless}, None, ramp(GREYS[0], 0, 4095)),
    "own percentiles": (HOUNSFIELD, "percentile", ramp(CT, *np.percentile(CT, (1, 99)))),
    "groups": (
        {
            "SharedFunctionalGroupsSequence": sequence(
                PixelValueTransformationSequence=sequence(**HOUNSFIELD),
                FrameVOILUTSequence=sequence(WindowCenter=40, WindowWidth=400),
            )
        },
        None,
        window(CT, 40, 400),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_greys_of_dicom(tmp_path, case):
    elements, text, expected = CASES[case]
    path = dicom(tmp_path / "a", GREYS[0], **elements)
    found = load_image(path, parse_rules(text, None, 1, False))
    np.testing.assert_allclose(np.asarray(found), expected, atol=0.51)


def test_a_look_up_table_for_display(tmp_path):
    table = (4095 - np.arange(4096) ** 2 // 4096).astype(np.uint16)
    lut = sequence(LUTDescriptor=[4096, 0, 12], LUTData=table.tobytes())
    path = dicom(tmp_path / "a", GREYS[0], VOILUTSequence=lut)
    np.testing.assert_allclose(np.asarray(load_image(path)), table[GREYS[0]] / 4095 * 255, atol=0.51)


def test_colours_frames_and_what_is_not_there(tmp_path):
    colours = np.random.default_rng(1).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    path = dicom(tmp_path / "rgb", colours, "RGB", 8)
    assert np.array_equal(load_image(path, PixelRules(page=2)), colours[1])
    assert np.array_equal(load_image(path, PixelRules(channels=(3, 2, 1))), colours[0][..., ::-1])
    assert stored_frame(path, PixelRules(page=2)) == ((8, 6), None)
    with pytest.raises(ValueError, match=r"2 frames, and no frame 3 \(--page\)"):
        load_image(path, PixelRules(page=3))
    with pytest.raises(ValueError, match=r"8 x 6 pixels, more than 47 \(--max-pixels\)"):
        load_image(path, max_pixels=47)
    entries = (np.arange(256, dtype=np.uint16) * 257)[::-1]
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    tables = {f"{name}Data": entries.tobytes() for name in names} | {f"{n}Descriptor": [256, 0, 16] for n in names}
    path = dicom(tmp_path / "palette", colours[0, ..., 0], bits=8, PhotometricInterpretation="PALETTE COLOR", **tables)
    assert np.array_equal(load_image(path), np.repeat(255 - colours[0, ..., :1], 3, axis=2))


def test_compressed_pixels(tmp_path):
    file = io.BytesIO()
    Image.fromarray((GREYS[0] >> 4).astype(np.uint8)).save(file, "JPEG")
    values = np.zeros((6, 8), np.uint8)
    path = dicom(tmp_path / "jpeg", values, bits=8, compression=JPEGBaseline8Bit, PixelData=file.getvalue())
    assert np.array_equal(load_image(path), Image.open(file))
    path = dicom(tmp_path / "lossless", values, bits=8, compression=JPEGLosslessSV1, PixelData=b"\0\0")
    with pytest.raises(ValueError, match=r"no decoder of its pixels \(JPEG Lossless.*pip install pylibjpeg"):
        load_image(path)


def test_dark_dicom_files_are_refused_unless_they_say_what_is_white(tmp_path):
    path = dicom(tmp_path / "a", GREYS[0] >> 6)
    with pytest.raises(ValueError, match=r"such as 0\.\.63, or take it as it is with --range dtype"):
        load_image(path, CHECKED)
    load_image(path)
    load_image(dicom(tmp_path / "b", GREYS[0] >> 6, WindowCenter=32, WindowWidth=64), CHECKED)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_slices_of_nifti(tmp_path, name, kind):
    values = GREYS.transpose(2, 1, 0).astype(np.int16) - 1024
    image = kind(values, np.eye(4))
    image.to_filename(tmp_path / name)
    seen = np.flipud(values[:, :, 1].T)  # the first axis to the right, the second upwards
    found = load_image(tmp_path / name, parse_rules("-160..240", None, 2, False))
    np.testing.assert_allclose(np.asarray(found), ramp(seen, -160, 240), atol=0.51)
    with pytest.raises(ValueError, match=r"such as -10\d\d\.\.[23]\d{3}$"):
        load_image(tmp_path / name)
    with pytest.raises(ValueError, match="2 slices, and no slice 3"):
        load_image(tmp_path / name, PixelRules(page=3))
    image.header["cal_min"], image.header["cal_max"] = -100, 300
    image.to_filename(tmp_path / name)
    np.testing.assert_allclose(
        np.asarray(load_image(tmp_path / name, PixelRules(page=2))), ramp(seen, -100, 300), atol=0.51
    )
    image.header["cal_max"] = np.inf
    image.to_filename(tmp_path / name)
    with pytest.raises(ValueError, match="in a sixteenth of what its file can hold"):
        load_image(tmp_path / name)


def test_other_shapes_and_types_of_nifti(tmp_path):
    shades = np.random.default_rng(0).random((8, 6), dtype=np.float32)
    nibabel.Nifti1Image(shades, np.eye(4)).to_filename(tmp_path / "a.nii")
    np.testing.assert_allclose(np.asarray(load_image(tmp_path / "a.nii")), np.flipud(shades.T) * 255, atol=0.51)
    volume = np.random.default_rng(0).integers(0, 256, (8, 6, 3, 1), dtype=np.uint8)
    nibabel.Nifti1Image(volume, np.eye(4)).to_filename(tmp_path / "c.nii")
    assert np.array_equal(load_image(tmp_path / "c.nii", PixelRules(page=2)), np.flipud(volume[:, :, 1, 0].T))
    for shape in ((3, 3, 3, 3), (3,)):
        nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)).to_filename(tmp_path / "b.nii")
        with pytest.raises(ValueError, match=rf"its shape is {re.escape(str(shape))}: slices need two axes or three"):
            load_image(tmp_path / "b.nii")


def test_values_that_are_no_numbers(tmp_path):
    values = np.full((8, 6), np.nan, np.float32)
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / "a.nii")
    for rules in (PixelRules(), parse_rules("min-max", None, 1, False)):
        with pytest.raises(ValueError, match="none of its values is a finite number"):
            load_image(tmp_path / "a.nii", rules)


def test_what_inflates_to_too_much_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    blank = np.zeros((320, 320), np.uint8)
    path = dicom(tmp_path / "d/a/a.dcm", blank, bits=8)
    data = dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(path)
    assert path.stat().st_size < len(blank.tobytes()) / 100
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/a.bmp", b"BM" + blank.tobytes())
    zipped = load_samples(str(tmp_path / "d.zip"))
    assert load_image(path).size == (320, 320)
    with pytest.raises(OSError, match="BMP"):  # it is inflated, and no picture
        zipped.load(0)
    monkeypatch.setattr(outside, "_LEAST_INFLATED", 1000)
    with pytest.raises(ValueError, match=r"its \d+ bytes inflate to more than \d+$"):
        load_image(path)
    with pytest.raises(ValueError, match=r"its \d+ bytes inflate to 102402, more than \d+$"):
        zipped.load(0)
    image = nibabel.Nifti1Image(blank, np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", bytes(300_000)))
    image.to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match=r"it says that it has 300\d+ bytes at one place, more than \d+$"):
        load_image(tmp_path / "a.nii.gz")
    monkeypatch.undo()
    assert load_image(tmp_path / "a.nii.gz").size == (320, 320)


def test_a_missing_reader_ends_a_look_at_the_data(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.write(dicom(tmp_path / "a.dcm", GREYS[0]), "a/a.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"DICOM files need pydicom: pip install"):
        survey(str(tmp_path / "d.zip"))


def test_folders_of_dicom_files_with_and_without_a_suffix(tmp_path, monkeypatch):
    names = ["IM0001", "1.2.840.113619", "a.dcm", "MR.1.2.3"]
    for place, name in enumerate(names):
        dicom(tmp_path / "d" / "ab"[place % 2] / name, GREYS[0])
    (tmp_path / "d/a/README").write_text("no image")
    samples = load_samples(str(tmp_path / "d"))
    assert sorted(path.rpartition("/")[2] for path in samples.ids) == sorted(names)
    told = lc.survey(str(tmp_path / "d"))  # no names that differ only in their suffix
    assert (told["kept"], told["formats"]) == ([], {"DICOM": 4})
    assert samples.load(0).size == (8, 6)
    assert [item.id for item in items([str(tmp_path / "d")])] == [str(tmp_path / "d" / own) for own in samples.ids]
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.write(tmp_path / "d/a/a.dcm", "a/a.dcm")
    assert np.array_equal(load_samples(str(tmp_path / "d.zip")).load(0), samples.load(0))
    monkeypatch.setattr(medical, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"holds DICOM files, which need pydicom: pip install 'losa-cache\[medical\]'"):
        load_samples(str(tmp_path / "d"))
    monkeypatch.setitem(sys.modules, "pydicom", None)  # as where it is not installed
    decoder = Decoder(samples, InputSpec((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "squash"), workers=1)
    with pytest.raises(UserError, match=r"DICOM files need pydicom: pip install 'losa-cache\[medical\]'"):
        list(decoder.batches([[(0, None)]]))  # no image is to blame: none is left out for it
    decoder.close()
    Image.new("L", (4, 4)).save(tmp_path / "d/a/b.png")  # beside other images they stay what they were: left out
    assert load_samples(str(tmp_path / "d")).ids == ["a/b.png"]

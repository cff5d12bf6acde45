"""Data sets in the layouts of their archives."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from losa_cache.data.load import load_samples
from losa_cache.errors import UserError


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def pairs(samples):
    return {name: samples.classes[label] for name, label in zip(samples.ids, samples.labels.tolist(), strict=True)}


def test_inaturalist_2021_is_numbered_by_its_folders(tmp_path):
    put(tmp_path / "2021_train/00000_Animalia_a/1.jpg")
    put(tmp_path / "2021_train/00003_Plantae_d/1.jpg")
    put(tmp_path / "2021_valid/00001_Animalia_b/1.jpg")
    put(tmp_path / "2021_valid/00003_Plantae_d/2.jpg")
    train, val = (load_samples("inaturalist", split=split, data_dir=tmp_path) for split in ("train", "val"))
    assert train.classes == val.classes == ("00000_Animalia_a", "00001_Animalia_b", "00002", "00003_Plantae_d")
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 3], [1, 3])
    put(tmp_path / "2021_valid/00000_Fungi_e/1.jpg")
    for split in ("train", "val"):
        with pytest.raises(UserError, match="give one number to '00000_.*' and '00000_"):
            load_samples("inaturalist", split=split, data_dir=tmp_path)


def test_inaturalist_2018_is_read_from_its_lists(tmp_path):
    names = ["train_val2018/Plantae/7/b.jpg", "train_val2018/Aves/2/a.jpg"]
    for name in names:
        put(tmp_path / name)
    listed = {
        "images": [{"id": 40 + place, "file_name": name, "width": 8} for place, name in enumerate(names)],
        "annotations": [{"id": 1, "image_id": 41, "category_id": 2}, {"id": 2, "image_id": 40, "category_id": 7}],
        "categories": [{"id": 7, "name": "rosa"}, {"id": 2, "name": "corvus"}],
    }
    file = tmp_path / "val2018.json"
    file.write_text(json.dumps(listed))
    samples = load_samples("inaturalist", split="val", data_dir=tmp_path)
    assert (samples.classes, pairs(samples)) == (("corvus", "rosa"), {names[0]: "rosa", names[1]: "corvus"})
    assert samples.load(0).size == (8, 8)
    for change, message in (
        ({"images": [{"id": 40, "file_name": "../x.jpg"}]}, "leads out of the folder"),
        ({"annotations": []}, "no category of its own"),
        ({"images": 3}, "cannot be read"),
        ({"images": [{"id": 40, "file_name": name} for name in names]}, "gives two images the id 40"),
        ({"annotations": [{"image_id": 40, "category_id": place} for place in (2, 7)]}, "categories to the image 40"),
        ({"categories": [{"id": 2, "name": name} for name in "ab"]}, "two categories the id 2"),
    ):
        file.write_text(json.dumps(listed | change))
        with pytest.raises(UserError, match=message):
            load_samples("inaturalist", split="val", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"holds neither train20\?\?.json nor class folders"):
        load_samples("inaturalist", data_dir=tmp_path)


SYNSETS = {1: "n02119789", 2: "n01440764", 3: "n02100735"}  # ILSVRC's numbers are in no order


def imagenet(root):
    put(root / "train/n02119789/n02119789_1.JPEG")
    put(root / "train/n01440764/n01440764_1.JPEG")
    for number in (1, 2, 3):
        put(root / f"val/ILSVRC2012_val_0000000{number}.JPEG")
    return root


def devkit():
    rows = [(number, synset, "", "", 0) for number, synset in SYNSETS.items() if number < 3]
    rows.append((1001, "n00001740", "entity", "", 5))
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "i4")]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kinds)})
    return {"ILSVRC2012_validation_ground_truth.txt": b"2\n1\n2\n", "meta.mat": meta.getvalue()}


def kaggle(root):
    lines = [
        "ImageId,PredictionString",
        *(f"ILSVRC2012_val_0000000{n},{SYNSETS[2 - n % 2]} 1 2 3 4" for n in (2, 3, 1)),
    ]
    (root / "LOC_val_solution.csv").write_text("\n".join(lines))


def unpacked(root):
    for name, content in devkit().items():
        (root / "ILSVRC2012_devkit_t12/data").mkdir(parents=True, exist_ok=True)
        (root / "ILSVRC2012_devkit_t12/data" / name).write_bytes(content)


def packed(root):
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as file:
        for name, content in devkit().items():
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("labels", [kaggle, unpacked, packed])
def test_imagenet_of_class_folders_and_a_flat_val(tmp_path, labels):
    root = imagenet(tmp_path / "ILSVRC/Data/CLS-LOC" if labels is kaggle else tmp_path)
    with pytest.raises(UserError, match="no labels of them"):
        load_samples("imagenet", split="val", data_dir=tmp_path)
    labels(tmp_path)
    train, val = (load_samples("imagenet", split=split, data_dir=tmp_path) for split in ("train", "val"))
    assert train.classes == val.classes == ("n01440764", "n02119789")
    numbers = (1, 2, 1) if labels is kaggle else (2, 1, 2)
    assert pairs(val) == {f"ILSVRC2012_val_0000000{n}.JPEG": SYNSETS[number] for n, number in enumerate(numbers, 1)}
    put(root / "val/ILSVRC2012_val_00000009.JPEG")
    with pytest.raises(UserError, match="nothing says the class of 'ILSVRC2012_val_00000009.JPEG'"):
        load_samples("imagenet", split="val", data_dir=tmp_path)


def test_places365_challenge_is_a_split_of_its_own(tmp_path):
    put(tmp_path / "data_large_challenge/a/airfield/challenge/00005001.jpg")
    (tmp_path / "categories_places365.txt").write_text("/a/airfield 0\n/b/bar 1\n")
    (tmp_path / "places365_train_challenge.txt").write_text("/a/airfield/challenge/00005001.jpg 0\n")
    samples = load_samples("places365", split="train-challenge", data_dir=tmp_path)
    assert (samples.load(0).size, pairs(samples)) == ((8, 8), {"a/airfield/challenge/00005001.jpg": "a/airfield"})


def test_vtab_in_class_folders_is_numbered_by_their_names(tmp_path):
    root = tmp_path / "eurosat"
    for name in ("train800/2/a", "train800/10/b", "val200/2/c", "test/0/d"):
        put(root / f"{name}.png")
    with pytest.raises(UserError, match="such as '10', 3 in all: the labels of eurosat are 0 to 9"):
        load_samples("vtab", split="test", data_dir=root)
    (root / "train800/10").rename(root / "train800/9")
    samples = load_samples("vtab", split="train800val200", data_dir=root)
    assert pairs(samples) == {"train800/2/a.png": "2", "train800/9/b.png": "9", "val200/2/c.png": "2"}
    assert len(samples.classes) == 10
    (root / "val200.txt").write_text("val200/2/c.png 2\n")
    assert load_samples("vtab", split="test", data_dir=root).labels.tolist() == [0]
    (root / "test/0").rename(root / "test/Forest")
    with pytest.raises(UserError, match="a list of val200, .* class folders such as 'Forest'"):
        load_samples("vtab", split="test", data_dir=root)

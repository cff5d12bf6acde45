"""torchvision's sets of image files: each sample's own file is known, and its picture is torchvision's."""

import inspect
import json

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from losa_cache.data.load import load_samples
from losa_cache.data.sources import builtin
from losa_cache.errors import UserError


def put(root, *names):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (number * 40, 255 - number * 40, len(name))).save(path)


def text(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def caltech101(root):
    folder = root / "caltech101/101_ObjectCategories"
    put(folder, "ant/image_0001.jpg", "ant/image_0002.jpg", "wrench/image_0001.jpg", "BACKGROUND_Google/image_0001.jpg")
    return "train", [0, 0, 1]


def caltech256(root):
    put(root / "caltech256/256_ObjectCategories", "001.ak47/001_0001.jpg", "002.flag/002_0001.jpg")
    return "train", [0, 1]


def country211(root):
    put(root / "country211/valid", "AD/1.jpg", "ZW/2.jpg")
    return "valid", [0, 1]


def eurosat(root):
    put(root / "eurosat/2750", "Forest/Forest_1.jpg", "River/River_1.jpg")
    return "train", [0, 1]


def fgvcaircraft(root):
    put(root / "fgvc-aircraft-2013b/data/images", "7.jpg", "3.jpg")
    text(root / "fgvc-aircraft-2013b/data", {"variants.txt": "A\nB C\n", "images_variant_test.txt": "7 B C\n3 A\n"})
    return "test", [1, 0]


def flowers102(root):
    from scipy.io import savemat

    put(root / "flowers-102/jpg", "image_00001.jpg", "image_00002.jpg", "image_00003.jpg")
    savemat(root / "flowers-102/imagelabels.mat", {"labels": [5, 9, 2]})
    savemat(root / "flowers-102/setid.mat", {"trnid": [3, 1], "valid": [2, 2], "tstid": [2, 2]})
    return "train", [1, 4]


def food101(root):
    put(root / "food-101/images", "pie/1.jpg", "soup/2.jpg")
    text(root / "food-101/meta", {"train.json": json.dumps({"soup": ["soup/2"], "pie": ["pie/1"]})})
    return "train", [1, 0]


def gtsrb(root):
    put(root / "gtsrb/GTSRB/Training", "00000/1.ppm", "00001/1.ppm")
    return "train", [0, 1]


def imagenette(root):
    put(root / "imagenette2/val", "n01440764/1.jpeg", "n03888257/1.jpeg")
    return "val", [0, 1]


def oxfordiiitpet(root):
    put(root / "oxford-iiit-pet/images", "pug_1.jpg", "Bengal_2.jpg")
    text(root / "oxford-iiit-pet/annotations", {"test.txt": "pug_1 2 2 1\nBengal_2 1 1 1\n"})
    return "test", [1, 0]


def renderedsst2(root):
    put(root / "rendered-sst2/train", "negative/1.png", "positive/1.png")
    return "train", [0, 1]


def stanfordcars(root):
    from scipy.io import savemat

    put(root / "stanford_cars/cars_train", "1.jpg", "2.jpg")
    (root / "stanford_cars/devkit").mkdir()
    rows = np.array([("1.jpg", 2), ("2.jpg", 1)], dtype=[("fname", "O"), ("class", "i4")])
    savemat(root / "stanford_cars/devkit/cars_train_annos.mat", {"annotations": rows})
    savemat(root / "stanford_cars/devkit/cars_meta.mat", {"class_names": np.array(["A", "B"], dtype=object)})
    return "train", [1, 0]


def sun397(root):
    put(root / "SUN397", "a/abbey/sun_1.jpg", "z/zoo/sun_1.jpg")
    text(root / "SUN397", {"ClassName.txt": "/a/abbey\n/z/zoo\n"})
    return "train", [0, 1]


LAYOUTS = [
    *(caltech101, caltech256, country211, eurosat, fgvcaircraft, flowers102, food101, gtsrb, imagenette),
    *(oxfordiiitpet, renderedsst2, stanfordcars, sun397),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda each: each.__name__)
def test_each_sample_has_its_own_file_with_torchvisions_picture(tmp_path, layout, monkeypatch):
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda _: True)  # it knows the real lists' md5
    split, labels = layout(tmp_path)
    name = layout.__name__
    samples = load_samples(name, data_dir=tmp_path, split=split)
    if name == "sun397":  # torchvision takes the order of the file system
        assert sorted(samples.labels.tolist()) == labels
    else:
        assert samples.labels.tolist() == labels
    kind = getattr(datasets, builtin.CLASSES[name])
    options = {"split": split} if "split" in inspect.signature(kind.__init__).parameters else {}
    theirs = kind(str(tmp_path), **options)
    for i in range(len(labels)):
        assert samples.load(i).convert("RGB").tobytes() == theirs[i][0].convert("RGB").tobytes()
        assert Image.open(samples.file(i)).convert("RGB").tobytes() == theirs[i][0].convert("RGB").tobytes()
    assert len({samples.file(i) for i in range(len(labels))}) == len(labels)


def test_every_set_is_one_of_files_that_are_tested_or_lies_in_memory():
    in_memory = {"cifar10", "cifar100", "fashionmnist", "kmnist", "mnist", "stl10", "svhn", "usps"}
    tested = {layout.__name__ for layout in LAYOUTS} | {
        "dtd",
        "imagenet",
    }  # tests/data/test_datasets.py; an ImageFolder
    assert tested | in_memory == builtin.CLASSES.keys()
    for name in in_memory:
        kind = getattr(datasets, builtin.CLASSES[name])
        assert any("self.data" in inspect.getsource(base) for base in kind.__mro__[:-1])
    assert issubclass(datasets.ImageNet, datasets.ImageFolder)


@pytest.mark.parametrize("clutter", [".ipynb_checkpoints/1-checkpoint.jpg", "Forest/.x/1.jpg", "River/._River_1.jpg"])
def test_hidden_files_are_refused_by_name(tmp_path, clutter):
    eurosat(tmp_path)
    put(tmp_path / "eurosat/2750", clutter)
    with pytest.raises(UserError, match=r"hidden or a system's, and no part of the data set: remove it"):
        load_samples("eurosat", data_dir=tmp_path)


def test_a_loop_is_refused_by_name(tmp_path):
    eurosat(tmp_path)
    (tmp_path / "eurosat/2750/Forest/again").symlink_to("..")
    with pytest.raises(UserError, match="are one folder, by a link"):
        load_samples("eurosat", data_dir=tmp_path)


def test_the_root_may_be_hidden(tmp_path):
    eurosat(tmp_path / ".cache")
    assert len(load_samples("eurosat", data_dir=tmp_path / ".cache")) == 2

"""Data sets in the layouts that people have on disk."""

import logging
import os

import numpy as np
import pytest
from PIL import Image

from losa_cache.data.load import load_samples
from losa_cache.data.sources.digits import PRETRAINING_CLASSES, digit_scans
from losa_cache.errors import UserError


def put(path, colour=0, size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 0)).save(path)


def test_folder_numbers_sorted_classes_and_finds_images_below_them(tmp_path):
    put(tmp_path / "train/zebra/1.PNG", 10)
    put(tmp_path / "train/ant/deep/er/2.png", 20)
    put(tmp_path / "train/ant/3.png", 30)
    (tmp_path / "train/ant/notes.txt").write_text("no image")
    samples = load_samples("folder", data_dir=tmp_path)
    assert samples.classes == ("ant", "zebra")
    assert list(zip(samples.ids, samples.labels.tolist(), strict=True)) == [
        ("ant/3.png", 0),
        ("ant/deep/er/2.png", 0),
        ("zebra/1.PNG", 1),
    ]
    assert [samples.load(i).getpixel((0, 0))[0] for i in range(3)] == [30, 20, 10]


def test_a_folder_path_is_a_data_set_name_and_needs_no_split_folder(tmp_path):
    put(tmp_path / "a/1.png")
    put(tmp_path / "b/1.png")
    assert len(load_samples(str(tmp_path))) == 2


def test_folder_splits_go_by_their_usual_names(tmp_path):
    put(tmp_path / "train/a/1.png")
    put(tmp_path / "valid/a/2.png")
    assert list(load_samples("folder", data_dir=tmp_path, split="val").ids) == ["a/2.png"]
    with pytest.raises(UserError, match="no split 'test'; it has: train, val"):
        load_samples("folder", data_dir=tmp_path, split="test")


def test_a_folder_of_another_kind_is_named_with_its_prefix(tmp_path):
    for files, prefix in (
        (["train/state.json", "train/data-0.arrow", "dataset_dict.json"], "hf"),
        (["a-000.tar", "a-001.tar"], "wds"),
        (["images.zip"], "zip"),
    ):
        root = tmp_path / prefix
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
        place = root / "images.zip" if prefix == "zip" else root
        for split in ("train", "val"):
            with pytest.raises(UserError) as refused:
                load_samples(str(root), split=split)
            assert str(refused.value).endswith(f"pass --dataset '{prefix}:{place}'.")


def test_a_table_beside_images_of_one_class_is_remarked_on(tmp_path, caplog):
    put(tmp_path / "images/1.png")
    (tmp_path / "labels.csv").write_text("path,label")
    assert load_samples(str(tmp_path)).classes == ("images",)
    assert "of one class, 'images', and the table 'labels.csv' lies there" in caplog.text
    assert str(tmp_path / "labels.csv") in caplog.text
    caplog.clear()
    put(tmp_path / "others/1.png")
    assert load_samples(str(tmp_path)).classes == ("images", "others")
    assert not [said for said in caplog.records if said.levelno >= logging.WARNING]


def test_fingerprint_follows_names_labels_and_sizes_but_not_places(tmp_path):
    for root in ("one", "two"):
        put(tmp_path / root / "a/1.png")
    one, two = (load_samples("folder", data_dir=tmp_path / root).fingerprint for root in ("one", "two"))
    assert one == two
    put(tmp_path / "two/a/1.png", size=(200, 100))
    assert load_samples("folder", data_dir=tmp_path / "two").fingerprint != one


def test_empty_missing_and_unreadable_folders_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no class folders with images"):
        load_samples("folder", data_dir=tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        load_samples("folder", data_dir=tmp_path / "nowhere")
    put(tmp_path / "a/1.png")
    (tmp_path / "a").chmod(0)
    try:
        if os.geteuid() != 0:  # root reads everything
            with pytest.raises(UserError, match="permission denied"):
                load_samples("folder", data_dir=tmp_path)
    finally:
        (tmp_path / "a").chmod(0o755)


def places365(root):
    put(root / "data_256_standard/a/airfield/00000001.jpg")
    put(root / "data_256_standard/b/bar/00000007.jpg")
    put(root / "val_256/Places365_val_00000001.jpg")
    (root / "categories_places365.txt").write_text("/a/airfield 0\n/b/bar 1\n")
    (root / "places365_train_standard.txt").write_text("/a/airfield/00000001.jpg 0\n/b/bar/00000007.jpg 1\n")
    (root / "places365_val.txt").write_text("Places365_val_00000001.jpg 1\n")


def test_places365_in_its_own_layout(tmp_path):
    places365(tmp_path)
    train = load_samples("places365", data_dir=tmp_path)
    val = load_samples("places365", data_dir=tmp_path, split="val")
    assert train.classes == ("a/airfield", "b/bar")
    assert list(train.ids) == ["a/airfield/00000001.jpg", "b/bar/00000007.jpg"]
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 1], [1])
    assert train.load(1).size == val.load(0).size == (20, 10)


@pytest.mark.parametrize("line", ["/../../etc/passwd.jpg 0", "/a/airfield/1.jpg 2", "/a/airfield/1.jpg", "x y"])
def test_places365_lists_are_data_not_trusted(tmp_path, line):
    places365(tmp_path)
    (tmp_path / "places365_train_standard.txt").write_text(line + "\n")
    with pytest.raises(UserError, match="places365_train_standard"):
        load_samples("places365", data_dir=tmp_path)


def test_places365_names_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="data_256_standard"):
        load_samples("places365", data_dir=tmp_path)
    with pytest.raises(UserError, match="places365 has no split 'test': choose one of train, train-challenge, val"):
        load_samples("places365", data_dir=tmp_path, split="test")


def test_a_torchvision_set_by_name(tmp_path):
    put(tmp_path / "eurosat/2750/Forest/Forest_1.jpg", 1)
    put(tmp_path / "eurosat/2750/River/River_1.jpg", 2)
    samples = load_samples("EuroSAT", data_dir=tmp_path)
    assert (samples.classes, samples.labels.tolist()) == (("Forest", "River"), [0, 1])
    assert samples.load(0).size == (20, 10)
    with pytest.raises(UserError, match="eurosat has no split 'test'"):
        load_samples("eurosat", data_dir=tmp_path, split="test")


def test_a_torchvision_set_with_splits_of_its_own(tmp_path):
    folder = tmp_path / "dtd/dtd"
    put(folder / "images/banded/banded_1.jpg")
    put(folder / "images/woven/woven_1.jpg")
    (folder / "labels").mkdir()
    (folder / "labels/train1.txt").write_text("woven/woven_1.jpg\n")
    (folder / "labels/test1.txt").write_text("banded/banded_1.jpg\nwoven/woven_1.jpg\n")
    train, test = (load_samples("dtd", data_dir=tmp_path, split=s) for s in ("train", "test"))
    assert (len(train), len(test)) == (1, 2)
    assert train.load(0).size == (20, 10)
    with pytest.raises(UserError, match="dtd: "):
        load_samples("dtd", data_dir=tmp_path, split="nonsense")


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(UserError, match="unknown data set 'cifar1000'.*nearest: .*cifar100"):
        load_samples("cifar1000")


def test_two_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="is a folder, and --data-dir names a folder, too .*give one"):
        load_samples(str(tmp_path), data_dir=tmp_path / "other")


def test_digits_never_show_a_pretraining_class_and_never_share_an_image():
    train, test = (load_samples("digits", split=s) for s in ("train", "test"))
    assert (len(train), len(test)) == (448, 448)
    assert train.classes == test.classes == ("5", "6", "7", "8", "9")
    pretraining = {f"{place:04d}" for place in digit_scans(PRETRAINING_CLASSES)[2]}
    assert not pretraining & (set(train.ids) | set(test.ids))
    assert not set(train.ids) & set(test.ids)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    bunch, train = load_digits(), load_samples("digits")
    for i in (0, 100, 447):
        place = int(train.ids[i])
        assert train.classes[train.labels[i]] == str(bunch.target[place])
        np.testing.assert_allclose(np.asarray(train.load(i)), bunch.images[place] * 255 / 16, atol=0.5)


def test_a_selection_keeps_ids_labels_and_images_together():
    whole = load_samples("digits")
    part = whole.select(np.array([9, 2]))
    assert list(part.ids) == [whole.ids[9], whole.ids[2]]
    assert np.array_equal(np.asarray(part.load(1)), np.asarray(whole.load(2)))

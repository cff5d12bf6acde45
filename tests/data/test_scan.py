"""Folders as people have them: links, loops, hidden and system files, splits under any name."""

import logging
import os

import pytest
from PIL import Image

from losa_cache.data.left import Left
from losa_cache.data.load import load_samples
from losa_cache.data.samples import from_files
from losa_cache.data.scan import scan
from losa_cache.errors import UserError


def put(path, size=(4, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (len(path.name), 0, 0)).save(path, "PNG")


def load(root, split="train"):
    return load_samples("folder", data_dir=root, split=split)


@pytest.fixture
def root(tmp_path):
    for name in ("cat/0", "cat/1", "dog/0", "dog/deep/1"):
        put(tmp_path / f"data/train/{name}.png")
    return tmp_path / "data"


PLAIN = ["cat/0.png", "cat/1.png", "dog/0.png", "dog/deep/1.png"]


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


LOOPS = {
    "dog/again": "..",
    "cat/again": "..",
    "cat/self": ".",
    "dog/deep/up": "..",
    "dog/deep/root": "../../..",
    "again": ".",
    "dog/circle": "circle",
    "dog/deep/farther": "../../../../data",
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_end_and_add_nothing(root, name, caplog):
    caplog.set_level(logging.INFO)
    link(root / "train" / name, LOOPS[name])
    samples = load(root)
    assert (list(samples.ids), samples.labels.tolist(), samples.classes) == (PLAIN, [0, 0, 1, 1], ("cat", "dog"))
    assert "left out " in caplog.text
    assert name in caplog.text


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("name", ["dog/00.png", "dog/a/00.png"])  # both sort before the file itself, and stay behind it
def test_a_file_that_a_class_meets_twice_counts_once_under_its_own_name(root, name, hard, caplog):
    caplog.set_level(logging.INFO)
    path = root / "train" / name
    path.parent.mkdir(exist_ok=True)
    (path.hardlink_to if hard else path.symlink_to)(root / "train/dog/deep/1.png")
    if hard:
        assert len(load(root)) == 4
    else:
        assert list(load(root).ids) == PLAIN
    assert "left out files and folders that a class meets twice, by links: 1 " in caplog.text


def test_a_folder_that_is_met_twice_counts_once(root):
    link(root / "train/dog/a", "deep")
    link(root / "train/dog/deep/b", "../c")
    put(root / "train/dog/c/7.png")
    assert list(load(root).ids) == [*PLAIN[:3], "dog/c/7.png", PLAIN[3]]


@pytest.mark.parametrize("hard", [False, True])
def test_one_file_in_two_classes_is_refused_with_both_names(root, hard):
    path = root / "train/cat/x.png"
    (path.hardlink_to if hard else path.symlink_to)(root / "train/dog/0.png")
    with pytest.raises(UserError, match=r"'cat/x.png' and 'dog/0.png' in .* are one file in two classes"):
        load(root)


def test_a_class_linked_under_another_name_is_refused(root):
    link(root / "train/hound", "dog")
    with pytest.raises(UserError, match="'dog/0.png' and 'hound/0.png' .* one file in two classes"):
        load(root)


def test_links_to_files_and_folders_elsewhere_are_followed(tmp_path):
    put(tmp_path / "store/animals/1.png")
    put(tmp_path / "store/2.png")
    link(tmp_path / "data/a", tmp_path / "store/animals")
    link(tmp_path / "data/b/x.png", tmp_path / "store/2.png")
    link(tmp_path / "data/b/gone.png", tmp_path / "nowhere.png")
    samples = load(tmp_path / "data")
    assert (list(samples.ids), samples.labels.tolist()) == (["a/1.png", "b/gone.png", "b/x.png"], [0, 1, 1])
    assert samples.load(0).size == (4, 3)


CLUTTER = (
    *(
        ".ipynb_checkpoints/0-checkpoint.png",
        ".git/x.png",
        "__MACOSX/cat/0.png",
        "@eaDir/cat/0.png",
        "lost+found/1.png",
    ),
    *("$RECYCLE.BIN/1.png", "System Volume Information/1.png", "#recycle/1.png", ".Trash-1000/files/1.png"),
    *("cat/.ipynb_checkpoints/1-checkpoint.png", "cat/._0.png", "cat/.hidden.png", "cat/@eaDir/0.png/thumb.png"),
    *("dog/deep/__MACOSX/._1.png", "dog/deep/.DS_Store", "cat/Thumbs.db", "__pycache__/1.png", "dog/Desktop.ini"),
)


@pytest.mark.parametrize("split", ["train", "."])
def test_hidden_and_system_files_are_no_classes_and_no_samples(root, split, caplog):
    caplog.set_level(logging.INFO)
    for name in CLUTTER:
        put(root / "train" / name)
    samples = load(root if split == "train" else root / "train")
    assert (list(samples.ids), samples.classes) == (PLAIN, ("cat", "dog"))
    assert f"left out hidden or system files and folders: {len(CLUTTER)} " in caplog.text


def test_a_root_may_be_hidden(root, tmp_path):
    root.rename(tmp_path / ".data")
    assert list(load(tmp_path / ".data").ids) == PLAIN


def test_other_files_and_empty_classes_are_said(root, caplog):
    caplog.set_level(logging.INFO)
    (root / "train/ant").mkdir()
    put(root / "test/ant/1.png")
    (root / "train/bee/wing").mkdir(parents=True)
    (root / "train/bee/legend.xml").write_text("no image")
    (root / "test/bee").mkdir()
    (root / "notes.txt").write_text("beside the splits")
    (root / ".DS_Store").write_text("")
    (root / "train/cat/notes.txt").write_text("no image")
    (root / "train/cat/photo.heic").write_text("no image that is read")
    os.mkfifo(root / "train/cat/pipe.png")
    put(root / "train/stray.png")
    samples = load(root)
    assert (samples.classes, samples.labels.tolist()) == (("ant", "cat", "dog"), [1, 1, 2, 2])
    files = [("cat/0.png", 1), ("cat/1.png", 1), ("dog/0.png", 2), ("dog/deep/1.png", 2)]
    base = root / "train"
    assert samples.fingerprint == from_files("folder", "train", samples.classes, base, files).fingerprint
    numbered = [(name, label + (label > 0)) for name, label in files]  # as before, when bee was class 1
    assert samples.earlier.fingerprint == from_files("folder", "train", "abcd", base, numbered).fingerprint
    assert samples.earlier.classes == ("ant", "bee", "cat", "dog")
    assert "left out files of other kinds: 4 ('bee/legend.xml', 'cat/notes.txt', 'cat/photo.heic', 'cat/pipe.png')" in (
        caplog.text
    )
    assert "left out images or videos beside the class folders: 1 ('stray.png')" in caplog.text
    assert "left out folders without an image or video in any split, which are no classes: 1 ('bee')" in caplog.text
    assert "kept class folders that are empty in this split and not in others: 1 ('ant')" in caplog.text
    assert "left out files and folders beside the split folders: 1 ('notes.txt')" in caplog.text
    assert "left out hidden or system files and folders: 1 ('.DS_Store')" in caplog.text


def test_of_many_that_are_left_out_five_are_named_in_the_order_of_their_names(root, caplog):
    caplog.set_level(logging.INFO)
    for number in (6, 3, 1, 5, 2, 4):
        (root / f"train/cat/{number}.txt").write_text("")
    assert list(load(root).ids) == PLAIN
    names = ", ".join(f"'cat/{number}.txt'" for number in range(1, 6))
    assert f"left out files of other kinds: 6 ({names}, ...)" in caplog.text


def test_files_that_differ_only_in_case_or_extension_are_kept_and_said(root, caplog):
    caplog.set_level(logging.INFO)
    alike = ["dog/A.png", "dog/a.PNG", "dog/b.Jpg", "dog/b.png"]
    for name in (*alike, "cat/deep/0.png"):  # 0.png in another folder is not like cat/0.png
        put(root / "train" / name)
    samples = load(root)
    assert set(samples.ids) == {*PLAIN, *alike, "cat/deep/0.png"}
    names = ", ".join(map(repr, alike))
    assert f"kept files whose names differ only in case or extension: 4 ({names})" in caplog.text


@pytest.mark.parametrize(
    ("folders", "asked"),
    [
        (("Training", "Testing"), {"train": "Training", "Training": "Training", "test": "Testing", "eval": "Testing"}),
        (("trn", "dev", "EVAL"), {"train": "trn", "val": "dev", "valid": "dev", "test": "EVAL"}),
        (("train_set", "TestSet"), {"train": "train_set", "test_set": "TestSet", "test": "TestSet"}),
        (("TRAIN", "Validation"), {"train": "TRAIN", "val": "Validation", "validation": "Validation"}),
    ],
)
def test_splits_go_by_common_names_in_any_case(tmp_path, folders, asked):
    for name in folders:
        put(tmp_path / name / "a" / f"{name}.png")
    for split, folder in asked.items():
        samples = load(tmp_path, split)
        assert (list(samples.ids), samples.classes) == ([f"a/{folder}.png"], ("a",))
        assert samples.split in ("train", "val", "test")
    assert load(tmp_path).split == "train"


@pytest.mark.parametrize("split", ["", ".", "./train", "..", "train/a"])
def test_a_split_is_the_name_of_a_folder_not_a_path(tmp_path, split):
    put(tmp_path / "train" / "a" / "1.png")
    with pytest.raises(UserError, match="has no split"):
        load(tmp_path, split)


@pytest.mark.parametrize("pair", [("val", "validation"), ("train", "Train"), ("test", "eval")])
def test_two_folders_of_one_split_are_refused(tmp_path, pair):
    for name in (*pair, "train", "val"):
        put(tmp_path / name / "a/1.png")
    with pytest.raises(UserError, match="which all name the split"):
        load(tmp_path, pair[0])


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ["train", "dev", "Test"])
def test_a_split_folder_beside_class_folders_is_not_clear(tmp_path, name, split):
    for other in ("bus", "car", name):
        put(tmp_path / other / "1.png")
    with pytest.raises(UserError, match=f"holds '{name}', the name of a split, beside .*'bus', 'car'.*--data-dir"):
        load(tmp_path, split)


@pytest.mark.parametrize(
    ("files", "where"),
    [
        (("seg_train/bus/1", "seg_test/bus/2", "seg_pred/3"), "'seg_test', 'seg_train'"),
        (("Train Set/bus/1", "Test Set/bus/2"), "'Test Set', 'Train Set'"),
        (("trainImages/bus/1", "valImages/bus/2"), "'trainImages', 'valImages'"),
        (("training_set/training_set/bus/1", "test_set/test_set/bus/2"), "'training_set'"),
        (("train/train/bus/1", "train/test/bus/2"), "'test', 'train'"),
        (("data/Training/bus/1", "data/Testing/bus/2"), "'Testing', 'Training'"),
        (("bus/train/1", "bus/test/2", "car/train/3"), "'test', 'train'"),
    ],
)
def test_splits_do_not_become_classes_whatever_they_are_called(tmp_path, files, where):
    for name in files:
        put(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match=f"holds {where}, which seem to be splits"):
        load(tmp_path)


def test_classes_may_have_names_like_splits(tmp_path):
    for name in ("train station/1", "test tube/1", "dev board/old/1"):
        put(tmp_path / f"{name}.png")
    assert load(tmp_path).classes == ("dev board", "test tube", "train station")


def test_a_split_that_is_another_by_a_link_is_said(root, caplog):
    link(root / "val", "train")
    assert list(load(root, "val").ids) == PLAIN
    assert "'val' and 'train' in" in caplog.text


def test_folders_beside_clear_splits_are_said(root, caplog):
    caplog.set_level(logging.INFO)
    (root / "annotations").mkdir()
    put(root / "test/cat/9.png")
    put(root / "unlabelled/9.png")
    assert list(load(root).ids) == PLAIN
    assert "left out files and folders beside the split folders: 2 ('annotations', 'unlabelled')" in caplog.text


def test_a_folder_that_cannot_be_listed_is_one_sentence(root, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root reads everything, so that the mode of a folder proves nothing
    with pytest.raises(UserError, match=r"folder '.*dog/deep' cannot be read: permission denied"):
        load(root)


def test_names_need_not_be_utf8(root):
    name = os.fsencode(root / "train/cat") + b"/\xff.png"
    with open(name, "wb") as file, open(root / "train/cat/0.png", "rb") as source:
        file.write(source.read())
    assert "cat/\udcff.png" in load(root).ids


def test_a_file_system_without_inode_numbers_loses_no_file(root, monkeypatch):
    link(root / "train/dog/again", "..")
    real = os.stat

    def stat(path, **options):
        found = real(path, **options)
        return os.stat_result((found.st_mode, 0, *found[2:]))

    monkeypatch.setattr(os, "stat", stat)
    assert scan(root / "train", ["cat", "dog"], (".png",), Left()).paths == PLAIN

"""VTAB-1k in NOAH's layout, as its script writes it: every split has its own copies of its images."""

import shutil

import pytest

import losa_cache as lc
from losa_cache.data.load import load_samples
from losa_cache.data.names import is_name
from losa_cache.data.sources.vtab import GROUPS, TASKS
from losa_cache.errors import UserError
from tests.data.vtab_roots import LABELS, write_task


def load(root, split):
    return load_samples("vtab", data_dir=root, split=split)


def edit(path, change):
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def test_there_are_nineteen_tasks_in_three_groups():
    groups = [task.group for task in TASKS.values()]
    assert [groups.count(group) for group in GROUPS] == [7, 4, 8]
    assert groups == sorted(groups, key=GROUPS.index)


def test_the_thousand_are_read_from_the_lists_of_their_two_parts(tmp_path):
    root = write_task(tmp_path / "eurosat")
    both, test = load(root, "train800val200"), load(root, "test")
    assert (both.name, both.split, test.split) == ("vtab/eurosat", "train800val200", "test")
    assert both.classes == test.classes == tuple("0123456789")
    assert list(both.ids) == [f"images/{split}/{i:06d}.png" for split in ("train800", "val200") for i in LABELS[split]]
    assert both.labels.tolist() == [*LABELS["train800"].values(), *LABELS["val200"].values()]
    assert [both.load(i).getpixel((0, 0))[0] for i in range(len(both))] == both.labels.tolist()
    assert list(load(root, "val200").ids) == [name for name in both.ids if "val200" in name]
    shutil.rmtree(root / "images" / "train800val200")
    assert load(root, "train800val200").fingerprint == both.fingerprint


def test_a_task_that_is_not_known_has_the_classes_that_any_of_its_lists_names(tmp_path):
    root = write_task(tmp_path / "stripes", more={"test": {99: 6}})
    assert load(root, "val200").classes == tuple("0123456")
    (root / "train800.txt").unlink()
    assert load(root, "train800val200").ids[0] == "images/train800val200/000000.png"
    (root / "val200.txt").write_text("images/a.png 1000000000000\n")
    with pytest.raises(UserError, match=r"lists of stripes number a class 1000000000000, but name \d+ images"):
        load(root, "test")


LINES = {
    "images/test/000001.png": "is not 'path label'",
    "images/test/000001.png 10": "has the label 10: those of eurosat are 0 to 9",
    "images/test/000001.png -1": "is not 'path label'",
    "../test/000001.png 1": "leads out of the folder",
    "/etc/passwd 1": "leads out of the folder",
    "images/test/000000.png 0": "again",
    "./images//test/000000.png 0": "again",
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("split", ["test", "train800"])  # a wrong list is refused whichever split is asked for
def test_lists_are_data_not_trusted(tmp_path, line, split):
    root = write_task(tmp_path / "eurosat")
    edit(root / "test.txt", lambda lines: [lines[0], f"{line}\n", *lines[2:]])
    with pytest.raises(UserError, match=f"line 2 of '.*eurosat/test.txt' .*{LINES[line]}"):
        load(root, split)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="vtab has no split 'train': choose one of train800, val200, train800val200"):
        load(tmp_path, "train")
    with pytest.raises(UserError, match="test.txt' cannot be read .*the folder of one task, as in vtab-1k/cifar"):
        load(tmp_path, "test")
    (tmp_path / "test.txt").write_bytes(b"\xff 0\n")
    with pytest.raises(UserError, match="it is not UTF-8"):
        load(tmp_path, "test")
    (tmp_path / "test.txt").write_text("")
    with pytest.raises(UserError, match="names no images"):
        load(tmp_path, "test")
    with pytest.raises(UserError, match="'vtab' needs --data-dir"):
        load_samples("vtab")


@pytest.mark.parametrize("spelling", ["images", "./images", "images//"])
def test_lists_that_share_images_are_refused(tmp_path, spelling):
    root = write_task(tmp_path / "eurosat")
    edit(root / "test.txt", lambda lines: [*lines, f"{spelling}/val200/000001.png 1\n"])
    with pytest.raises(UserError, match=r"val200.txt and test.txt .* share 1 images, the first 'images/val200/000001"):
        load(root, "train800")


def test_a_list_of_the_thousand_that_shares_images_with_the_test_is_refused(tmp_path):
    root = write_task(tmp_path / "eurosat")
    for name in ("train800", "val200"):
        (root / f"{name}.txt").unlink()
    edit(
        root / "test.txt",
        lambda lines: [*lines, (root / "train800val200.txt").read_text().splitlines(keepends=True)[0]],
    )
    for split in ("train800val200", "test"):
        with pytest.raises(UserError, match=r"train800val200.txt and test.txt .* share 1 images"):
            load(root, split)


def test_a_list_of_the_thousand_that_is_not_the_two_together_is_refused(tmp_path):
    root = write_task(tmp_path / "eurosat")
    edit(root / "train800val200.txt", lambda lines: lines[:-1])
    with pytest.raises(UserError, match="train800val200.txt .* is not train800.txt and val200.txt together"):
        load(root, "train800")
    parts = [line for part in ("val200", "train800") for line in (root / f"{part}.txt").read_text().splitlines()]
    (root / "train800val200.txt").write_text("\n".join(parts))  # the same images by the same paths: as good
    assert len(load(root, "train800val200")) == len(parts)
    edit(root / "train800val200.txt", lambda lines: [lines[0].replace("val200", "test"), *lines[1:]])
    with pytest.raises(UserError, match="not train800.txt and val200.txt together"):
        load(root, "train800")


def test_a_cache_names_its_task_and_is_computed_again_from_the_folder(tmp_path):
    root = write_task(tmp_path / "eurosat")
    cache = lc.extract("vit_digits", "vtab", split="train800val200", data_dir=root, resize="exact")
    assert cache.path.parent.name == "caches"
    assert cache.path.name.startswith("vit_digits-vtab-eurosat-train800val200-")
    assert cache.manifest.fields["dataset"]["name"] == "vtab/eurosat"
    moved = root.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="cannot be read"):
        lc.verify_cache(cache.path, recompute=5)
    moved.rename(root)
    assert lc.verify_cache(cache.path, recompute=5)["intact"]
    val = lc.extract("vit_digits", "vtab", split="val200", data_dir=root, resize="exact")
    assert lc.verify_cache(val.path)["intact"]
    result = lc.train(epochs=1, out=tmp_path / "run")  # of the training cache, though that of val200 is more recent
    assert result.run.joinpath("config.json").read_text().count("train800val200") > 0
    online = lc.OnlineConfig("vit_digits", "vtab", "train800val200", str(root), resize="exact")
    assert is_name(online.to_json()["dataset"])
    lc.train(online=online, epochs=1, out=tmp_path / "online")
    assert lc.evaluate_run(tmp_path / "online", split="test")["samples"] == len(LABELS["test"])

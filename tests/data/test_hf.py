"""Data sets that the library ``datasets`` wrote."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from losa_cache.data.load import load_samples
from losa_cache.data.samples import Samples
from losa_cache.data.sources import hf
from losa_cache.errors import UserError
from losa_cache.targets.read import read_targets


def encoded(colour, kind="png"):
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (colour, 0, 0)).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("hf")
    datasets.disable_progress_bars()
    return datasets


def rows(datasets, colours=(1, 2, 3)):
    masks = [Image.fromarray(np.full((10, 20), place, dtype=np.uint8)) for place in range(len(colours))]
    columns = {
        "picture": [{"bytes": encoded(colour), "path": f"{colour}.png"} for colour in colours],
        "mask": masks,
        "age": [0.5 * place for place in range(len(colours))],
        "label": [1, 0, 1],
        "name": ["b", "a", "b"],
        "tags": [[0, 1], [], [1]],
        "box": [[0.0, place + 0.5] for place in range(len(colours))],
    }
    features = datasets.Features(
        picture=datasets.Image(),
        mask=datasets.Image(),
        age=datasets.Value("float64"),
        label=datasets.ClassLabel(names=["cat", "dog"]),
        name=datasets.Value("string"),
        tags=datasets.Sequence(datasets.ClassLabel(names=["wet", "old"])),
        box=datasets.Sequence(datasets.Value("float32")),
    )
    return datasets.Dataset.from_dict(columns, features=features)


def test_a_saved_data_set_gives_images_labels_and_target_sets(datasets, tmp_path):
    both = datasets.DatasetDict(train=rows(datasets), validation=rows(datasets, (7, 8, 9)))
    both.save_to_disk(tmp_path / "set")
    columns = "image=picture,mask,age,name,tags,box"
    samples = load_samples(f"hf:{tmp_path / 'set'}", split="val", columns=columns)
    assert (samples.split, list(samples.ids)) == ("val", ["7.png", "8.png", "9.png"])
    assert (samples.classes, samples.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
    assert [samples.encoded(i) for i in range(3)] == [encoded(7), encoded(8), encoded(9)]
    assert samples.load(2).getpixel((0, 0)) == (9, 0, 0)
    assert samples.archive(0).suffix == ".arrow"
    sets = (read_targets(samples.targets[key], samples.ids, name=key) for key in ("age", "name", "tags", "box"))
    age, name, tags, box = sets
    assert (age.kind, age.values[:, 0].tolist()) == ("numbers", [0.0, 0.5, 1.0])
    assert (name.kind, name.names, name.values.tolist()) == ("class", ["a", "b"], [1, 0, 1])
    assert (tags.kind, tags.names, tags.values.tolist()) == ("multilabel", ["wet", "old"], [[1, 1], [0, 0], [0, 1]])
    assert (box.kind, box.names, box.values[2].tolist()) == ("numbers", ["box0", "box1"], [0.0, 2.5])
    assert samples.targets["mask"].stored(2).tolist() == [[2] * 20] * 10
    assert load_samples(f"hf:{tmp_path / 'set'}", columns="image=picture,label=name").classes == ("a", "b")
    listed = load_samples(f"hf:{tmp_path / 'set'}", columns="image=picture,label,age")  # without label=
    assert (listed.classes, list(listed.targets)) == (("cat", "dog"), ["age"])
    for wrong, message in (
        ({"columns": "image=picture,ago"}, "has no column 'ago'.*nearest: age"),
        ({"columns": None}, "2 columns of images .*--columns image="),
        ({"columns": columns, "split": "test"}, "no split 'test'; it has: train, validation"),
    ):
        with pytest.raises(UserError, match=message):
            load_samples(f"hf:{tmp_path / 'set'}", **wrong)


def test_the_fingerprint_is_that_of_the_data_however_they_are_kept(datasets, tmp_path):
    data = rows(datasets)
    data.save_to_disk(tmp_path / "one")
    data.save_to_disk(tmp_path / "two", num_shards=3)
    (tmp_path / "three").mkdir()
    data.to_parquet(tmp_path / "three/train-00000-of-00001.parquet")
    sets = [load_samples(f"hf:{tmp_path / name}", columns="image=picture") for name in ("one", "two", "three")]
    assert len({samples.fingerprint for samples in sets}) == 1
    assert len({sets[1].archive(i) for i in range(3)}) == 3
    rows(datasets, (1, 2, 200)).save_to_disk(tmp_path / "one")
    assert load_samples(f"hf:{tmp_path / 'one'}", columns="image=picture").load(2).getpixel((0, 0))[0] == 200


@pytest.mark.parametrize("hashed", [None, 0])
def test_pictures_of_one_size_that_show_something_else_have_another_fingerprint(
    datasets, tmp_path, monkeypatch, hashed
):
    if hashed is not None:
        monkeypatch.setattr(hf, "_HASHED", hashed)
    fingerprints = set()
    for colour in (1, 2):
        features = datasets.Features(image=datasets.Image())
        stored = [{"bytes": encoded(own, "bmp"), "path": None} for own in (0, colour)]
        datasets.Dataset.from_dict({"image": stored}, features=features).save_to_disk(tmp_path / f"{colour}")
        fingerprints.add(load_samples(f"hf:{tmp_path / str(colour)}").fingerprint)
    assert len(fingerprints) == 2


def test_a_folder_of_images_is_read_by_the_paths_of_its_files(datasets, tmp_path):
    for kind, colour in (("ant", 4), ("bee", 5)):
        (tmp_path / "set/train" / kind).mkdir(parents=True)
        (tmp_path / "set/train" / kind / "1.png").write_bytes(encoded(colour))
    samples = load_samples(f"hf:{tmp_path / 'set'}")
    assert list(samples.ids) == ["train/ant/1.png", "train/bee/1.png"]
    assert (samples.classes, samples.labels.tolist()) == (("ant", "bee"), [0, 1])
    assert samples.load(1).getpixel((0, 0))[0] == 5
    os.remove(samples.archive(1))
    with pytest.raises(Exception, match="No such file"):
        samples.load(1)
    with pytest.raises(UserError, match="cannot be opened"):
        (tmp_path / "empty").mkdir()
        load_samples(f"hf:{tmp_path / 'empty'}")


def test_paths_in_a_table_from_elsewhere_open_nothing_outside_of_it(datasets, tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(1))
    features = datasets.Features(image=datasets.Image(decode=False))
    data = datasets.Dataset.from_dict(
        {"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}, {"bytes": encoded(2), "path": None}]},
        features=features,
    )
    (tmp_path / "set").mkdir()
    import pyarrow.parquet as pq

    pq.write_table(data.data.table, tmp_path / "set/train.parquet")
    samples = load_samples(f"hf:{tmp_path / 'set'}")
    assert (samples.classes, list(samples.ids)) == (("unlabelled",), ["000000", "000001"])
    assert samples.load(1).getpixel((0, 0))[0] == 2
    with pytest.raises(ValueError, match="outside of the data set"):
        samples.load(0)


def test_columns_of_other_types_are_refused_and_a_kind_that_is_named_is_obeyed(datasets, tmp_path):
    data = rows(datasets).remove_columns("label").add_column("label", [0.0, 1.0, 0.0])
    data = data.add_column("row", [{"x": 1}] * 3)
    data.save_to_disk(tmp_path / "set")

    def load(columns):
        return load_samples(f"hf:{tmp_path / 'set'}", columns=f"image=picture,{columns}")

    for columns, message in (
        ("age", "has float64 in its column 'label', and a label is"),
        ("label=age", "has float64 in its column 'age': a label is"),
        ("label=box", "has List in its column 'box': a label is"),
        ("label:numbers,row", "column 'row' of .* holds a value of type dict for '1.png'"),
        ("label:numbers,box:class", "'box' of .* cannot be read as class: it holds lists of numbers"),
        ("label:numbers,tags:class", "'tags' of .* cannot be read as class: it holds lists of classes"),
        ("label:numbers,mask:numbers", "'mask' of .* cannot be read as numbers: it holds images"),
    ):
        with pytest.raises(UserError, match=message):
            load(columns)
    assert load("label:numbers").classes == ("unlabelled",)
    rows(datasets).rename_column("label", "grade").save_to_disk(tmp_path / "graded")
    grade = load_samples(f"hf:{tmp_path / 'graded'}", columns="image=picture,grade:numbers").targets["grade"]
    assert (grade.kind, grade.entries.tolist()) == ("numbers", [[1.0], [0.0], [1.0]])


def test_the_only_column_of_images_is_the_image_where_it_is_listed_too(datasets, tmp_path):
    rows(datasets).remove_columns("mask").save_to_disk(tmp_path / "set")
    samples = load_samples(f"hf:{tmp_path / 'set'}", columns="picture,label,age")
    assert ([samples.encoded(0), samples.encoded(1)], list(samples.targets)) == ([encoded(1), encoded(2)], ["age"])


def test_parquet_with_paths_of_images_elsewhere_is_one_sentence(datasets, tmp_path):
    (tmp_path / "1.png").write_bytes(encoded(1))
    features = datasets.Features(image=datasets.Image())
    data = datasets.Dataset.from_dict({"image": [str(tmp_path / "1.png")]}, features=features)
    (tmp_path / "set").mkdir()
    data.to_parquet(tmp_path / "set/train.parquet")
    with pytest.raises(UserError, match=r"paths of files outside of it, the first '.*1.png', .* with save_to_disk"):
        load_samples(f"hf:{tmp_path / 'set'}")
    data.save_to_disk(tmp_path / "saved")
    assert load_samples(f"hf:{tmp_path / 'saved'}").encoded(0) == encoded(1)


def test_a_data_set_of_the_library_as_an_object_is_pointed_to_its_name(datasets):
    with pytest.raises(UserError, match="is a Dataset of the Hugging Face library: .*save_to_disk.* pass 'hf:FOLDER'"):
        Samples.of(datasets.Dataset.from_dict({"label": [0]}))

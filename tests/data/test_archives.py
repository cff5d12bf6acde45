"""Images in tar and zip files that other programs wrote: the same samples, pixels and rows as from a folder."""

import functools
import http.server
import io
import json
import os
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from losa_cache.data.load import load_samples
from losa_cache.data.names import located, moved
from losa_cache.data.samples import Samples
from losa_cache.data.shards import shards_of
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.targets.read import read_targets
from tests.conftest import tiny_backbone


def encoded(colour, suffix="png"):
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (colour, 0, 0)).save(file, {"jpg": "jpeg"}.get(suffix, suffix))
    return file.getvalue()


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def shard(path, *, first=0, count=2):
    members = []
    for i in range(first, first + count):
        members += [(f"d/{i:03d}.png", encoded(10 * i)), (f"d/{i:03d}.cls", b"%d\n" % (i % 2))]
    return tar(path, members)


def test_shards_by_braces_and_folder_are_the_samples_in_them(tmp_path):
    shard(tmp_path / "train/s-0.tar"), shard(tmp_path / "train/s-1.tar", first=2)
    shard(tmp_path / "val/s-0.tar", count=3)
    braces = load_samples(f"wds:{tmp_path}/train/s-{{0..1}}.tar")
    folder = load_samples(f"wds:{tmp_path}")
    assert list(braces.ids) == ["d/000", "d/001", "d/002", "d/003"]
    assert (braces.classes, braces.labels.tolist()) == (("0", "1"), [0, 1, 0, 1])
    assert [braces.load(i).getpixel((0, 0))[0] for i in range(4)] == [0, 10, 20, 30]
    assert folder.fingerprint == braces.fingerprint
    assert len(load_samples(f"wds:{tmp_path}", split="validation")) == 3
    with pytest.raises(UserError, match="no shards of the split 'test'; it has: train, val"):
        load_samples(f"wds:{tmp_path}", split="test")
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    assert load_samples(f"wds:{tmp_path}").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "split", "keys"),
    [
        ("trainval-0 test-0", "test", "test-0"),
        ("trainval-0 test-0", "train", "trainval-0"),
        ("trainval-0 test-0", "trainval", "trainval-0"),
        ("train-0 train_val-0 val-0", "train", "train-0"),
        ("val-0 trainval-0", "train", "no shards of the split 'train'; it has: trainval, val"),
        ("train-0 extra-0", "train", "extra-0 train-0"),
        ("train-0 extra-0", "extra", "extra-0"),
        ("train-0 extra-0", "test", "no shards of the split 'test'; it has: train"),
        ("train-0 test-0 extra-0", "test", "'extra-0.tar', whose names say no split, beside shards of test, train"),
        ("a b", "train", "a b"),
        ("a b", "val", "no shards of the split 'val'; it has: train "),
    ],
)
def test_shards_are_of_the_split_that_they_say_and_else_of_training(tmp_path, names, split, keys):
    for name in names.split():
        tar(tmp_path / f"{name}.tar", [(f"{name}.png", encoded(1))])
    if " " in keys and not {*keys.split()} <= {*names.split()}:
        with pytest.raises(UserError, match=keys):
            load_samples(f"wds:{tmp_path}", split=split)
    else:
        assert list(load_samples(f"wds:{tmp_path}", split=split).ids) == keys.split()


def test_json_gives_labels_and_target_sets_and_keys_that_shards_share_get_their_names(tmp_path):
    mask = io.BytesIO()
    Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20) % 3).save(mask, "png")
    for number, species in enumerate(("owl", "cat")):
        content = {"species": species, "age": number + 0.5, "caption": "x"}
        members = [
            ("0.jpg", encoded(9, "jpg")),
            ("0.json", json.dumps(content).encode()),
            ("0.mask.png", mask.getvalue()),
        ]
        tar(tmp_path / f"{number}.tar", [*members, ("._0.jpg", b"x"), ("readme", b"x")])
    samples = load_samples(f"wds:{tmp_path}/*.tar", columns="label=species,age,mask.png")
    assert (list(samples.ids), samples.classes, samples.labels.tolist()) == (["0/0", "1/0"], ("cat", "owl"), [1, 0])
    ages = read_targets(samples.targets["age"], samples.ids, name="age")
    assert (ages.kind, ages.values.tolist()) == ("numbers", [[0.5], [1.5]])
    assert samples.targets["mask_png"].stored(1)[9, 19] == 199 % 3
    groups = load_samples(f"wds:{tmp_path}/*.tar", columns="label=species,group=caption").targets["group"]
    assert read_targets(groups, samples.ids, name="group").names == ["x"]
    with pytest.raises(UserError, match="has splits of its own: leave split=species out"):
        load_samples(f"wds:{tmp_path}/0.tar", columns="split=species")
    with pytest.raises(UserError, match="has no 'genus': it has jpg, json, mask.png, species, age, caption"):
        load_samples(f"wds:{tmp_path}/0.tar", columns="label=genus")


def damaged(tmp_path):
    whole = shard(tmp_path / "whole.tar").read_bytes()
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "link.tar", "w") as file:
        file.addfile(link)
    png, one = encoded(1), ("a.cls", b"1")
    tar(tmp_path / "twice.tar", [("a.png", png), ("b.png", png), ("a.png", png)])
    tar(tmp_path / "escape.tar", [("../a.png", png)])
    tar(tmp_path / "bare.tar", [one])
    tar(tmp_path / "some.tar", [("a.png", png), one, ("b.png", png)])
    return {
        "cut.tar": (whole[:1700], "cannot be read .*end of data"),
        "between.tar": (whole[:1024], "lacks its end"),
        "header.tar": (whole[:1024] + b"x" * 512 + whole[1536:], "is damaged at byte 1024"),
        "joined.tar": (whole + whole, "goes on behind its end"),
        "packed.tar": (b"\x1f\x8b" + bytes(100), "is compressed"),
        "link.tar": (None, "'a.png', a link or device"),
        "twice.tar": (None, "the key 'a' in two places"),
        "escape.tar": (None, "leads out of a folder"),
        "bare.tar": (None, "has no images \\(cls\\)"),
        "some.tar": (None, "1 of 2 images no label, the first of them 'b'"),
    }


def test_each_way_in_which_a_shard_is_wrong_is_one_sentence(tmp_path):
    for name, (content, message) in damaged(tmp_path).items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as refused:
            load_samples(str(tmp_path / name))
        assert str(refused.value).count(". ") == 0
    with pytest.raises(UserError, match="no tar file is called"):
        load_samples("wds:nowhere-{0..3}.tar")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("--5", "the label '--5', which is no number"),
        ("9" * 30, "the label '9{30}', which is no number"),
        ("9" * 5000, "the label '9{80}', which is no number"),
        (" ", "gives 'a' an empty label"),
        ("é", None),
        ("-7b", None),
    ],
)
def test_labels_of_shards_are_numbers_or_names(tmp_path, label, message):
    file = tar(tmp_path / "s.tar", [("a.png", encoded(1)), ("a.cls", label.encode())])
    if message is None:
        assert load_samples(str(file)).classes == (label,)
    else:
        with pytest.raises(UserError, match=message):
            load_samples(str(file))


def test_what_json_holds_is_no_label_or_target_where_it_is_neither_a_number_nor_a_name(tmp_path):
    def refused(content, message, columns=None):
        file = tar(tmp_path / "s.tar", [("a.png", encoded(1)), ("a.json", json.dumps(content).encode())])
        with pytest.raises(UserError, match=message):
            load_samples(str(file), columns=columns)

    refused({"label": 10**30}, "gives 'a' a label of more than 64 bits")
    refused({"label": 1.0}, "must be a whole number or a name")
    refused({"m": {"x": 1}}, "column 'm' of .* holds a value of type dict for 'a'", "m")
    refused({"m": [0.5, 1.5]}, "column 'm' of .* cannot be read as class: it holds lists of numbers", "m:class")
    file = tar(tmp_path / "mask.tar", [("a.jpg", encoded(1, "jpg")), ("a.png", encoded(1))])
    with pytest.raises(UserError, match="column 'png' of .* cannot be read as numbers: it holds images"):
        load_samples(str(file), columns="image=jpg,weight=png")


def test_a_key_that_has_a_dot_is_not_taken_for_an_image_without_a_label(tmp_path):
    for label in ("a.1.cls", "a.1.json"):
        file = tar(tmp_path / "s.tar", [("a.1.png", encoded(1)), (label, b'{"label": 3}')])
        with pytest.raises(UserError, match=f"has '{label[2:]}' and no 'cls': a key ends at its first dot"):
            load_samples(str(file))


def test_names_of_classes_are_there_once_and_of_their_own_lines(tmp_path):
    shard(tmp_path / "s.tar")
    for names, message in (
        ("cat\n\ndog\n", "line 2 is blank"),
        ("\ncat\ndog\n", "line 1 is blank"),
        ("cat\ncat\n", "calls two classes 'cat'"),
    ):
        (tmp_path / "classnames.txt").write_text(names)
        with pytest.raises(UserError, match=message):
            load_samples(f"wds:{tmp_path}/s.tar")
    (tmp_path / "classnames.txt").write_text("cat\r\ndog\r\n\n")
    assert load_samples(f"wds:{tmp_path}/s.tar").classes == ("cat", "dog")
    images = [(Image.new("RGB", (4, 4)), 0)]
    with pytest.raises(UserError, match="has no name for its class 1"):
        Samples.of(images, "x", classes=["a", " "])
    assert Samples.of(images, "imagenet", classes=["crane", "crane"]).classes == ("crane", "crane")  # as torchvision


def test_patterns_expand_as_a_shell_expands_them(tmp_path):
    urls = "http://h/{train,val}-{08..10}.tar"
    assert shards_of(urls) == [f"http://h/{part}-{n}.tar" for part in ("train", "val") for n in ("08", "09", "10")]
    with pytest.raises(UserError, match="names 100000 files or more"):
        shards_of("http://h/{0..999}-{0..9999}.tar")
    with pytest.raises(UserError, match="more than 32 braces"):
        shards_of("{a,b}" * 1500)
    with pytest.raises(UserError, match="names no files"):
        shards_of("http://h/{9..0}.tar")
    assert located("wds:x-{0..9}.tar::http://h/y.tar", lambda path: tmp_path / path) == (
        f"wds:{tmp_path}/x-{{0..9}}.tar::http://h/y.tar"
    )


def test_archives_that_a_cache_names_are_opened_only_in_the_folder_that_the_user_names(tmp_path):
    (tmp_path / "pets.zip").touch()
    for name, place in (
        ("wds:/old/x-{0..9}.tar::http://h/y.tar", f"wds:{tmp_path}/x-{{0..9}}.tar::{tmp_path}/y.tar"),
        ("wds:/old/shards", f"wds:{tmp_path}"),
        ("zip:/old/pets.zip", f"zip:{tmp_path}/pets.zip"),
        ("hf:owner/name", f"hf:{tmp_path}"),
    ):
        assert moved(name, tmp_path) == {"dataset": place}


def test_shards_of_a_server_are_fetched_once_and_whole(tmp_path):
    served, home = tmp_path / "served", tmp_path / "home"
    shard(served / "a.tar")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

        def end_headers(self):
            if self.path == "/short.tar":
                self.send_header("Connection", "close")
            super().end_headers()

        def copyfile(self, source, outputfile):
            content = source.read()
            outputfile.write(content[: len(content) // 2] if self.path == "/short.tar" else content)

    (served / "short.tar").write_bytes((served / "a.tar").read_bytes())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=served)) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        try:
            url = f"wds:http://127.0.0.1:{server.server_port}/"
            for _ in range(2):
                assert list(load_samples(f"{url}a.tar", home=home).ids) == ["d/000", "d/001"]
            assert len(asked) == 1
            with pytest.raises(UserError, match="names no file"):
                load_samples(f"{url}..", home=home)
            with pytest.raises(UserError, match=r"short.tar' cannot be fetched \(\d+ of \d+ bytes came\)"):
                load_samples(f"{url}short.tar", home=home)
            whole = (served / "a.tar").read_bytes()
            for wrong in (whole[:1536], b"<html>Log in</html>"):
                (served / "late.tar").write_bytes(wrong)
                with pytest.raises(UserError, match=r"late.tar' did not come as a whole tar file"):
                    load_samples(f"{url}late.tar", home=home)
            (served / "late.tar").write_bytes(whole)
            assert list(load_samples(f"{url}late.tar", home=home).ids) == ["d/000", "d/001"]
        finally:
            server.shutdown()
    assert sorted(path.name for path in home.rglob("*") if path.is_file()) == ["a.tar", "late.tar"]


def pack(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def test_class_folders_in_a_zip_file_follow_the_rules_of_folders(tmp_path):
    files = {
        "pets/Training/cat/1.png": encoded(1),
        "pets/Training/ant/deep/2.jpg": encoded(2, "jpg"),
        "pets/Training/ant/.hidden.png": b"x",
        "pets/test/ant/3.png": encoded(3),
        "__MACOSX/pets/Training/cat/._1.png": b"x",
        "pets/readme.txt": b"x",
    }
    samples = load_samples(str(pack(tmp_path / "pets.zip", files)))
    assert (samples.classes, samples.labels.tolist()) == (("ant", "cat"), [0, 1])
    assert list(samples.ids) == ["ant/deep/2.jpg", "cat/1.png"]
    assert [samples.encoded(i) for i in range(2)] == [encoded(2, "jpg"), encoded(1)]
    assert (samples.left.counts.total(), samples.load(1).getpixel((0, 0))) == (3, (1, 0, 0))
    assert list(load_samples(f"zip:{tmp_path}/pets.zip", split="test").ids) == ["ant/3.png"]
    with pytest.raises(UserError, match="has no split 'val'; it has: train, test"):
        load_samples(f"zip:{tmp_path}/pets.zip", split="val")
    rooted = pack(tmp_path / "rooted.zip", {"/cat/1.png": encoded(1), "dog//2.png": encoded(2)})
    assert list(load_samples(str(rooted)).ids) == ["cat/1.png", "dog/2.png"]
    plain = pack(tmp_path / "plain.zip", {"1.png": encoded(1), "2.png": encoded(2)}, zipfile.ZIP_STORED)
    assert load_samples(str(plain)).classes == ("unlabelled",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("seg_train/a/1 seg_train/b/1 seg_test/a/2", "holds 'seg_test', 'seg_train', which seem to be splits"),
        ("A/train/1 A/test/2 B/train/3", "below 'A' holds 'test', 'train', which seem to be splits"),
        ("test/1 cats/2 dogs/3", r"holds 'test', the name of a split, beside folders of images \('cats', 'dogs'\)"),
        ("pets-test/a/1 pets-test/b/2", "holds 'pets-test', which seem to be splits"),
        ("train/train/a/1 train/val/a/2", "in its folder 'train', holds 'train', 'val', which seem to be splits"),
    ],
)
def test_zip_files_refuse_the_splits_that_folders_refuse(tmp_path, names, message):
    files = {f"{name}.png": encoded(1) for name in names.split()}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    pack(tmp_path / "a.zip", files)
    with pytest.raises(UserError, match=message):
        load_samples(f"zip:{tmp_path}/a.zip")
    with pytest.raises(UserError, match="which seem to be splits|the name of a split"):
        load_samples(str(tmp_path))


def test_zip_files_that_are_damaged_encrypted_or_bombs_are_refused(tmp_path):
    path = pack(tmp_path / "a.zip", {"a/1.png": encoded(1), "a/2.png": encoded(2)}, zipfile.ZIP_STORED)
    whole, before = path.read_bytes(), load_samples(str(path)).fingerprint
    at = whole.index(encoded(2))
    path.write_bytes(whole[: at + 60] + b"?" + whole[at + 61 :])
    altered = load_samples(str(path))
    assert altered.load(0).size == (20, 10)
    with pytest.raises(ValueError, match="checksum"):
        altered.load(1)
    path.write_bytes(whole[:-40])
    with pytest.raises(UserError, match="cannot be read as a zip file"):
        load_samples(str(path))
    directory = whole.index(b"PK\x01\x02")
    path.write_bytes(whole[: directory + 8] + b"\x01" + whole[directory + 9 :])  # the flag of encryption
    with pytest.raises(UserError, match="is encrypted"):
        load_samples(str(path))
    assert load_samples(str(pack(path, {"a/1.png": encoded(1), "a/2.png": encoded(7)}))).fingerprint != before
    bomb = pack(path, {"a/1.png": bytes(10_000_000)}).read_bytes()
    path.write_bytes(bomb.replace((10_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="damaged"):
        load_samples(str(path)).load(0)


def turned(root):
    """Write pictures that their EXIF orientation turns, each of another kind and class, and give their paths."""
    for number in range(6):
        exif, pixels = Image.Exif(), np.random.default_rng(number).integers(0, 256, (8, 12, 3), dtype=np.uint8)
        exif[0x0112] = (6, 8, 1)[number % 3]
        path = root / f"train/{'ab'[number // 3]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, exif=exif, compress_level=0)
    return sorted(root.rglob("*.png"))


def test_extraction_gives_the_same_rows_from_a_folder_a_tar_and_a_zip_file(tmp_path):
    paths = turned(tmp_path / "set")
    names = {path: str(path.relative_to(tmp_path / "set")) for path in paths}
    pack(tmp_path / "set.zip", {name: path.read_bytes() for path, name in names.items()})
    members = [member for path in paths for member in ((path.name, path.read_bytes()), (f"{path.stem}.cls", b"1"))]
    tar(tmp_path / "set.tar", members)
    rows = set()
    for name in ("set", "set.zip", "set.tar"):
        samples = load_samples(str(tmp_path / name))
        cache = extract(tiny_backbone(), samples, precision="float32", out=tmp_path / f"{name}.zarr")
        rows.add(b"".join(cache.shard_path(shard).read_bytes() for shard in range(cache.layout.shards)))
    assert len(rows) == 1
    os.utime(tmp_path / "set.tar", (1, 1))  # another time stamp alone is no other content
    assert extract(tiny_backbone(), samples, precision="float32", out=cache.path).path == cache.path
    content = paths[0].read_bytes()
    members[0] = (paths[0].name, content[:90] + bytes([content[90] ^ 1]) + content[91:])
    tar(tmp_path / "set.tar", members)
    again = load_samples(str(tmp_path / "set.tar"))
    assert again.fingerprint == samples.fingerprint
    with pytest.raises(UserError, match=r"was extracted from other files: '0' .*set.tar'\) has another content"):
        extract(tiny_backbone(), again, precision="float32", out=cache.path)

"""Data sets of Python objects: torch's, torchvision's, and images in memory."""

import hashlib
from types import MappingProxyType

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import Sequential
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset
from torchvision.transforms import v2

from losa_cache.data.from_python import LOOKED_AT, picture
from losa_cache.data.samples import Samples
from losa_cache.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
LABELS = [0, 1, 1, 0]
CLASSES = ("a", "b")


def of_list(pixels=PIXELS, labels=LABELS, **more):
    return Samples.of(list(zip(pixels, labels, strict=True)), "mine", **{"classes": CLASSES} | more)


def test_images_in_memory_are_a_data_set():
    made = Samples.of(zip(PIXELS, LABELS, strict=True), "mine", classes=CLASSES, split="test")
    assert (made.name, made.split, made.classes, len(made)) == ("mine", "test", CLASSES, 4)
    assert made.ids == ["000000", "000001", "000002", "000003"]
    assert [np.array_equal(made.load(i), PIXELS[i]) for i in range(4)] == [True] * 4
    assert made.labels.tolist() == LABELS
    assert of_list([Image.fromarray(each) for each in PIXELS]).fingerprint == made.fingerprint
    assert Samples.of(PIXELS, "mine", labels=LABELS).fingerprint == made.fingerprint
    digest = hashlib.sha256()  # as versions before this one had it: their caches are found
    for place, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        digest.update(f"{place:06d}\t{label}\tRGB\t(5, 6)\t{hashlib.sha256(pixels.tobytes()).hexdigest()}\n".encode())
    assert made.fingerprint == f"sha256:{digest.hexdigest()}"
    others = [
        of_list(PIXELS[::-1]),
        of_list(labels=[0, 1, 0, 1]),
        of_list(ids=list("wxyz")),
        of_list(PIXELS.swapaxes(1, 2)),
        of_list(PIXELS[..., 0]),
    ]
    assert len({each.fingerprint for each in [made, *others]}) == 6
    assert others[-1].load(0).mode == "L"


class Squares(Dataset):
    """Forty images of which each is asked for by number, and counted."""

    class_to_idx = MappingProxyType({"odd": 1, "even": 0})

    def __init__(self, **stored):
        self.asked = []
        self.first, self.shift = 0, 0
        for name, value in stored.items():
            setattr(self, name, value)

    def __len__(self):
        return 40

    def __getitem__(self, index):
        self.asked.append(index)
        return Image.new("L", (3, 2), self.first if index == 0 else index), torch.tensor((index + self.shift) % 2)


def test_a_data_set_of_torch_is_read_lazily_where_it_knows_its_labels():
    data = Squares(targets=[place % 2 for place in range(40)])
    samples = Samples.of(data, "squares")
    assert (samples.classes, samples.labels.tolist()) == (("even", "odd"), [place % 2 for place in range(40)])
    assert len(set(data.asked)) == LOOKED_AT
    assert samples.load(39).getpixel((0, 0)) == 39
    assert Samples.of(Squares(targets=data.targets), "squares").fingerprint == samples.fingerprint
    assert Samples.of(Squares(targets=data.targets, first=9), "squares").fingerprint != samples.fingerprint
    part = Samples.of(Subset(data, [5, 8]), "squares")
    assert (part.classes, part.labels.tolist()) == (("even", "odd"), [1, 0])
    shifted = Squares(targets=data.targets, shift=1)  # as a target_transform does
    assert Samples.of(shifted, "squares").labels.tolist() == [(place + 1) % 2 for place in range(40)]
    unknown = Squares()
    assert Samples.of(unknown, "squares").labels.tolist() == samples.labels.tolist()
    assert set(unknown.asked) == set(range(40))
    versions = {Samples.of(Squares(first=f), "squares", fingerprint=v).fingerprint for f in (0, 9) for v in "12"}
    assert len(versions) == 2
    tensors = Samples.of(TensorDataset(torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255, torch.tensor(LABELS)), "t")
    assert [np.array_equal(tensors.load(i), PIXELS[i]) for i in range(4)] == [True] * 4
    assert tensors.classes == ("0", "1")


IMAGE = torch.from_numpy(PIXELS[0])
SAME = {
    "array": PIXELS[0],
    "array, channels first": PIXELS[0].transpose(2, 0, 1),
    "tensor": IMAGE.permute(2, 0, 1),
    "tensor, channels last": IMAGE,
    "floats of ToTensor": IMAGE.permute(2, 0, 1) / 255,
    "bfloat16": (IMAGE.permute(2, 0, 1) > 99).bfloat16().requires_grad_(),
    "float64": PIXELS[0] / 255,
}


@pytest.mark.parametrize("form", SAME)
def test_every_form_of_an_image_is_the_same_picture(form):
    expected = (PIXELS[0] > 99) * 255 if form == "bfloat16" else PIXELS[0]
    np.testing.assert_array_equal(picture(SAME[form], 0), expected)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


class Random(Squares):
    def __getitem__(self, index):
        return Image.new("L", (3, 2), int(torch.randint(256, ()))), index % 2


class Seldom(Squares):
    """Gives another image every eleventh time."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return (Image.new("L", (3, 2), 255) if len(self.asked) % 11 == 0 else image), label


REFUSED = {
    "labels": (
        lambda: Samples.of(PIXELS, "mine", labels=[0]),
        "4 images, 1 labels",
    ),
    "fractions": (
        lambda: Samples.of(PIXELS, "mine", labels=[0.5, 1, 1, 0]),
        "labels of data set 'mine' are of .*float64",
    ),
    "ids": (lambda: of_list(ids=["a"] * 4), "an id twice"),
    "empty id": (lambda: of_list(ids=["a", "b", "", "d"]), "has an empty id: give each sample a name of its own"),
    "zero byte": (lambda: of_list(ids=["a", "a\0", "c", "d"]), "the id 'a.x00', which holds a zero byte"),
    "no text": (lambda: of_list(ids=["a", "\ud800", "c", "d"]), "the id '.ud800' has a lone surrogate"),
    "ids of two types": (lambda: of_list(ids=["1", 1, 2, 3]), "an id twice"),
    "a dict": (lambda: Samples.of({"a": (PIXELS[0], 0)}, "mine"), "of the type dict: .* map-style"),
    "a gap": (
        lambda: Samples.of(Squares(targets=[0, 1], class_to_idx={"x": 0, "y": 1, "z": 5}), "mine"),
        r"numbers 3 classes \[0, 1, 5\], not from 0 on, each once: pass classes=",
    ),
    "a class": (lambda: of_list(labels=[0, 1, 2, 0]), "labels from 0 to 2, but 2 classes"),
    "normalised": (
        lambda: picture(IMAGE.permute(2, 0, 1) / 64 - 2, 3),
        "a tensor of float32 .*-2 to .*before",
    ),
    "16 bits": (lambda: picture(PIXELS[0].astype(np.uint16), 3), "an array of uint16"),
    "a stack": (lambda: picture(PIXELS, 3), r"uint8 \(4, 6, 5, 3\): give"),
    "5 channels": (lambda: picture(np.zeros((7, 6, 5), np.uint8), 3), r"uint8 \(7, 6, 5\): give"),
    "a path": (lambda: Samples.of([("a.png", 0)], "mine"), "image 0 is of the type str: .* table"),
    "one-hot": (lambda: of_list(labels=np.eye(4)), r"target 0 is '\[1. 0. 0. 0.\]', which is no number of a class"),
    "a box": (lambda: Samples.of([(PIXELS[0], {"boxes": []})], "mine"), "target 0 is .*boxes.*pass labels="),
    "images alone": (lambda: Samples.of(PIXELS, "mine"), "item 0 is of the type ndarray: it must be a pair"),
    "a stream": (lambda: Samples.of(Stream(), "mine"), "of the type Stream: .* map-style"),
    "random": (lambda: Samples.of(Random(targets=[p % 2 for p in range(40)]), "r"), "gives another image 0 each time"),
    "random, labels unknown": (lambda: Samples.of(Random(), "r"), "gives another image 0 each time"),
    "random now and then": (lambda: Samples.of(Seldom(), "r"), "gives another image .* each time"),
    "a random transform": (
        lambda: Samples.of(Subset(Squares(transform=v2.Compose([Sequential(v2.RandomHorizontalFlip(0.1))])), [1])),
        "'samples' has the random transform RandomHorizontalFlip",
    ),
    "a jitter, with a version": (
        lambda: Samples.of(Squares(transform=v2.ColorJitter(hue=0.1)), "r", fingerprint="1"),
        "'r' has the random transform ColorJitter",
    ),
    "names": (lambda: Samples.of(PIXELS, labels=["a", "b", "b", "a"]), "of the type <U1 .* names .* as classes="),
    "pairs with names": (lambda: Samples.of([(PIXELS[0], "a")]), "target 0 is 'a', which .* names .* as classes="),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_data_set_is_a_sentence(case):
    make, words = REFUSED[case]
    with pytest.raises(UserError, match=words):
        make()

"""Pixels in parallel: the same as by timm in this process, whoever computes them and in whichever order."""

import hashlib
import os
import random

import numpy as np
import pytest
import torch
from timm.data import create_transform

from losa_cache.data.decode import Decoder
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError
from tests.conftest import tiny_samples

POLICY = "rand-m9-mstd0.5-inc1"
SPEC = InputSpec((3, 32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic", 1.0, "center")


def by_timm(samples, index, draw, seed):
    """docs/protocol.md, section Arrays, read literally."""
    key = f"{seed}\0{draw}\0{samples.ids[index]}".encode()
    number = int.from_bytes(hashlib.sha256(key).digest()[:4], "little")
    random.seed(number), np.random.seed(number), torch.manual_seed(number)
    transform = create_transform(
        SPEC.size, is_training=True, auto_augment=POLICY, interpolation="bicubic", mean=SPEC.mean, normalize=False
    )
    return transform(samples.load(index))


@pytest.mark.parametrize("workers", [1, 2])
def test_augmented_views_are_timms_own_whoever_decodes_them(workers):
    samples = tiny_samples()
    decoder = Decoder(samples, SPEC, workers=workers, augment=POLICY, seed=5)
    plan = [[(3, 1), (0, 2)], [(3, 2)], [(22, 1), (3, 1), (7, None)]]
    try:
        for views, batch in zip(plan, decoder.batches(plan), strict=True):
            for (index, draw), pixels in zip(views, batch.pixels, strict=True):
                if draw is not None:
                    assert torch.equal(pixels, by_timm(samples, index, draw, 5))
    finally:
        decoder.close()


def test_plain_views_are_the_same_by_threads_and_by_processes():
    found = []
    for augment in (None, POLICY):
        decoder = Decoder(tiny_samples(), SPEC, workers=2, augment=augment)
        found.append(torch.cat([b.pixels for b in decoder.batches([[(4, None), (1, None)], [(0, None)]])]))
        decoder.close()
    assert torch.equal(*found)


@pytest.mark.parametrize("augment", [None, POLICY])
def test_a_plan_left_early_does_not_disturb_the_next(augment):
    decoder = Decoder(tiny_samples(), SPEC, workers=2, augment=augment)
    first = decoder.batches([[(i, None)] for i in range(20)])
    next(first)
    first.close()
    (batch,) = decoder.batches([[(9, None)]])
    reference = Decoder(tiny_samples(), SPEC, workers=1)
    assert torch.equal(batch.pixels, next(reference.batches([[(9, None)]])).pixels)
    decoder.close()
    reference.close()


@pytest.mark.parametrize("augment", [None, POLICY])
def test_an_image_that_does_not_decode_is_named_and_the_others_keep_their_places(augment):
    samples = tiny_samples(bad=(2,))
    decoder = Decoder(samples, SPEC, workers=2, augment=augment)
    (batch,) = decoder.batches([[(1, None), (2, None), (3, None)]])
    decoder.close()
    assert batch.failures == {1: (2, "OSError: image file is truncated")}
    assert batch.pixels[1].count_nonzero() == 0
    assert batch.pixels[0].count_nonzero() > 0
    with pytest.raises(UserError, match="'image-002' does not decode .*truncated.*: mend it"):
        batch.require(samples, "mend it")


def test_grey_input_is_augmented_too():
    spec = InputSpec((1, 32, 32), (0.5,), (0.5,), "bicubic", 1.0, "center")
    decoder = Decoder(tiny_samples(), spec, workers=1, augment=POLICY)
    (batch,) = decoder.batches([[(i, 0) for i in range(12)]])
    decoder.close()
    assert not batch.failures
    assert batch.pixels.shape == (12, 1, 32, 32)


@pytest.mark.parametrize(
    "policy", ["rand-m9-mstd0.5-inc1", "rand-m10-n3", "augmix-m3-w3", "original", "v0", "3a", "crop"]
)
@pytest.mark.slow
def test_every_policy_works_on_every_image(policy):
    decoder = Decoder(tiny_samples(), SPEC, workers=2, augment=policy)
    batches = list(decoder.batches([[(i, draw) for i in range(23)] for draw in range(20)]))
    decoder.close()
    assert not [batch.failures for batch in batches if batch.failures]


@pytest.mark.parametrize("policy", ["nonsense", "rand-q3", "random"])
def test_a_policy_that_timm_does_not_know_is_refused(policy):
    with pytest.raises(UserError, match=f"timm does not know the augmentation '{policy}'"):
        SPEC.augmentation(policy)


def test_a_decoding_process_that_dies_is_one_sentence():
    def die(i):
        os._exit(9)

    samples = tiny_samples()
    decoder = Decoder(type(samples)(**{**vars(samples), "load": die}), SPEC, workers=1, augment=POLICY)
    with pytest.raises(UserError, match="a process that decodes images died .*fewer --workers"):
        next(decoder.batches([[(0, 0)]]))
    decoder.close()

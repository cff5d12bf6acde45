"""Video from end to end: class folders of files, the embedded ViViT, a cache of clips, LoSA of space and time."""

import numpy as np
import pytest
import torch

import losa_cache as lc
from losa_cache.data.clips import Clip
from losa_cache.sidenet.video import VideoLoSA
from losa_cache.train.batch import Request
from losa_cache.train.cached import CachedSource
from tests.data.videos import write_video

CLIPS = 3
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two classes that differ in where the counting begins; one video is longer than the rest."""
    root = tmp_path_factory.mktemp("videos")
    for label, first in (("low", 0), ("high", 2048)):
        for number in range(5):
            write_video(root / label / f"{number}.mp4", 12 if number else 30, first=first + 40 * number)
    return root


@pytest.fixture(scope="module")
def cache(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "v.zarr"
    return lc.extract("vivit_digits", str(videos), clips=CLIPS, precision="float32", device="cpu", out=out)


def options(**changed):
    return {"rank": 4, "epochs": 4, "lr": 0.02, "batch_size": 4, "val_fraction": 0.3, "device": "cpu"} | changed


def test_a_cache_of_videos_has_a_row_a_clip_on_a_grid_with_time(cache, videos):
    assert cache.manifest.tokens == {"total": 129, "prefix": 1, "grid": [2, 8, 8]}
    assert (cache.layout.samples, len(cache.samples), cache.manifest.clips) == (10 * CLIPS, 10, CLIPS)
    backbone, samples = lc.load_backbone("vivit_digits"), lc.load_samples(str(videos))
    transform, source = backbone.input.transform(), CachedSource(cache, ["block.8"], CPU)
    index = samples.ids.index(cache.sample_ids[4])
    for number in range(CLIPS):
        (batch,) = source.batches([Request(np.array([4]), view=number)])
        frames = samples.clip(index, Clip(frames=4, stride=2, number=number, count=CLIPS))
        pixels = torch.stack([transform(frame) for frame in frames])
        (expected,) = backbone.outputs(pixels[None], ["block.8"], compute=torch.float32)
        torch.testing.assert_close(batch.blocks[0], expected, rtol=1e-4, atol=1e-4)
    source.close()


def test_training_evaluates_videos_by_the_mean_of_their_clips(cache, tmp_path):
    run = lc.train(cache, out=tmp_path / "run", **options())
    assert isinstance(run.adapter.side, VideoLoSA)
    assert run.adapter.side.layers[1].frames == 2
    found = lc.evaluate_run(run.run)
    assert found["samples"] == 3
    assert found["loss"] == pytest.approx(run.metrics["val_loss"], rel=1e-4)
    everything = lc.evaluate_run(run.run, cache=cache.path)
    source = CachedSource(cache, cache.manifest.points, CPU)
    with torch.inference_mode():
        each = []
        for clip in range(CLIPS):
            (batch,) = source.batches([Request(cache.samples, view=clip)])
            each.append(run.adapter.eval()(batch.blocks).softmax(-1))
    source.close()
    mean = torch.stack(each).mean(0)
    labels = batch.labels
    assert everything["loss"] == pytest.approx(-mean[torch.arange(10), labels].log().mean().item(), rel=1e-4)
    assert everything["top1"] == pytest.approx(100 * (mean.argmax(-1) == labels).float().mean().item())
    assert not torch.allclose(each[0], each[2], atol=1e-3)  # else the mean says nothing


def test_online_video_training_is_the_cached_one(cache, videos, tmp_path):
    expected = lc.train(cache, out=tmp_path / "cached", **options())
    online = lc.OnlineConfig("vivit_digits", str(videos), clips=CLIPS, precision="float32")
    fresh = lc.train(online=online, out=tmp_path / "online", **options(seed=0))
    for ours, theirs in zip(fresh.adapter.parameters(), expected.adapter.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert fresh.metrics["val_loss"] == pytest.approx(expected.metrics["val_loss"], rel=1e-3)


def test_a_cache_of_videos_is_verified_and_mended_from_its_files(cache, videos):
    assert lc.verify_cache(cache.path, recompute=4, data_dir=videos)["intact"]
    shard = cache.shard_path(0)
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    assert not lc.verify_cache(cache.path)["intact"]
    assert lc.verify_cache(cache.path, repair=True, data_dir=videos)["intact"]


@pytest.mark.slow
def test_a_video_backbone_streams_through_a_small_device_with_the_same_result(cache, videos, tmp_path):
    options = {"clips": CLIPS, "precision": "float32", "device": "cpu", "batch_size": 3}
    plain = lc.extract("vivit_digits", str(videos), out=tmp_path / "p.zarr", **options)
    with pytest.raises(lc.UserError, match="at least"):
        lc.extract("vivit_digits", str(videos), max_device_memory="1MB", out=tmp_path / "s.zarr", **options)
    budget = "5MB"
    streamed = lc.extract("vivit_digits", str(videos), max_device_memory=budget, out=tmp_path / "s.zarr", **options)
    backbone = lc.load_backbone("vivit_digits").to("cpu", budget=5_000_000)
    assert len(backbone.groups(3, torch.float32)) == 4
    assert streamed.manifest.identity == plain.manifest.identity
    for shard in range(plain.layout.shards):
        assert streamed.shard_path(shard).read_bytes() == plain.shard_path(shard).read_bytes()


def test_images_and_videos_are_not_mixed_up(videos, tmp_path):
    with pytest.raises(lc.UserError, match="holds images"):
        lc.extract("vivit_digits", "digits", out=tmp_path / "a.zarr")
    with pytest.raises(lc.UserError, match="clips of videos are not augmented"):
        lc.extract("vivit_digits", str(videos), views=2, augment="crop", out=tmp_path / "b.zarr")
    with pytest.raises(lc.UserError, match="views is 2 and clips is 3"):
        lc.extract("vivit_digits", str(videos), views=2, clips=3, augment="crop", out=tmp_path / "c.zarr")
    with pytest.raises(lc.UserError, match="takes images: frames"):
        lc.extract("vit_digits", str(videos), frames=8, out=tmp_path / "d.zarr")
    images = lc.extract("vit_digits", str(videos), limit=4, device="cpu", out=tmp_path / "e.zarr")  # middle frames
    assert images.layout.samples == 4

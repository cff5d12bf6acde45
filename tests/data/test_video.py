"""Clips of videos: the frames that were asked for, whatever the codec and the container make of them."""

import sys
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from losa_cache.data.clips import Clip
from losa_cache.data.decode import Decoder
from losa_cache.data.load import load_samples
from losa_cache.data.transforms import InputSpec
from losa_cache.data.video import read_clip
from losa_cache.errors import UserError
from tests.conftest import tiny_samples
from tests.data.videos import number_of, write_video

FRAMES = 70
OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0:b-adapt=0"}
UNEVEN = [number * 40 + number % 7 * 5 for number in range(FRAMES)]
LONG = {"gop": 12, "b_frames": 3}

FORMS = {
    "one_key_frame.mp4": {"b_frames": 0},
    "b_frames.mp4": LONG,
    "open_gop.mp4": {"options": OPEN_GOP},
    "open_gop.mkv": {"options": OPEN_GOP},
    "sound.mov": {"audio": True, **LONG},
    "fragments.m4v": {"container": {"movflags": "frag_keyframe+empty_moov"}, "audio": True, **LONG},
    "uneven.mp4": {"times": UNEVEN, **LONG},
    "uneven.mkv": {"times": UNEVEN, **LONG},
    "no_index.mkv": {"container": {"live": "1"}, **LONG},
    "vp8.webm": {"codec": "libvpx", "gop": 12, "options": {"deadline": "realtime", "cpu-used": "8"}},
    "hidden.webm": {"codec": "libvpx-vp9", "gop": 12, "options": {"cpu-used": "8", "lag-in-frames": "16"}},
    "h264.avi": LONG,
    "mpeg4.avi": {"codec": "mpeg4", "gop": 12, "b_frames": 2},
}
CLIPS = [Clip(1), Clip(8, 3), Clip(8, 1, 0, 3), Clip(8, 1, 2, 3), Clip(5, 2, 1, 4), Clip(4, 1, 3, 9), Clip(32, 4)]

SPEC = InputSpec((3, 48, 64), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "squash", frames=4, stride=3)


def numbers(path, clip):
    return [number_of(image) for image in read_clip(path, clip)]


@pytest.mark.parametrize("name", FORMS)
def test_exactly_the_frames_that_were_asked_for(tmp_path, name):
    path = write_video(tmp_path / name, FRAMES, **FORMS[name])
    for clip in CLIPS:
        assert numbers(path, clip) == clip.indices(FRAMES).tolist(), clip


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_very_short_videos(tmp_path, length, suffix):
    codec = "libvpx" if suffix == "webm" else "libx264"
    path = write_video(tmp_path / f"short.{suffix}", length, codec=codec)
    assert numbers(path, Clip(4, 2)) == Clip(4, 2).indices(length).tolist()


def packets_of(path):
    with av.open(str(path)) as file:
        yield from (packet for packet in file.demux(video=0) if packet.size)


def remux(source, target, keep, shift=0):
    """Copy packets without decoding them, as a cut does."""
    with av.open(str(source)) as file, av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as out:
        stream = out.add_stream_from_template(file.streams.video[0])
        for number, packet in enumerate(packet for packet in file.demux(video=0) if packet.size):
            if number >= keep:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                out.mux(packet)
    return target


def test_frames_that_a_cut_hides_are_not_shown(tmp_path):
    source = write_video(tmp_path / "source.mp4", FRAMES, gop=25, b_frames=2)
    path = remux(source, tmp_path / "cut.mp4", keep=0, shift=10 * 512)  # ten frames before time 0
    for clip in CLIPS:
        assert numbers(path, clip) == (10 + clip.indices(FRAMES - 10)).tolist()


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_cut_that_begins_between_key_frames_begins_at_the_next_one(tmp_path, suffix):
    source = write_video(tmp_path / "source.mp4", FRAMES, gop=25, b_frames=2)
    path = remux(source, tmp_path / f"cut.{suffix}", keep=10)
    for clip in CLIPS:
        assert numbers(path, clip) == (25 + clip.indices(FRAMES - 25)).tolist()


@pytest.mark.parametrize("b_frames", [0, 3])
def test_what_lies_before_the_key_frame_and_behind_the_clip_is_not_decoded(tmp_path, b_frames):
    path = write_video(tmp_path / "a.mp4", 100, gop=20, b_frames=b_frames, options={"sc_threshold": "0"})
    clip = Clip(4, 2, 1, 3)
    first, last = clip.indices(100)[[0, -1]]
    packets = [(packet.pts, packet.pos, packet.size, packet.is_keyframe) for packet in packets_of(path)]
    frames = [sorted(packets).index(packet) for packet in packets]  # what each packet holds
    needed = range(frames.index(first // 20 * 20), frames.index(last + 1) + 1 + b_frames)
    content = bytearray(path.read_bytes())
    for number, (_, at, size, key) in enumerate(packets):
        if number not in needed and not key:
            content[at : at + size] = b"\xff" * size
    path.write_bytes(content)
    assert numbers(path, clip) == clip.indices(100).tolist()
    with pytest.raises(av.FFmpegError):
        numbers(path, Clip(4, 2, 0, 3))


def broken(folder):
    whole = write_video(folder / "whole.mp4", 75, gop=10, audio=True).read_bytes()
    front = write_video(folder / "front.mp4", 75, gop=10, container={"movflags": "faststart"}).read_bytes()
    matroska = write_video(folder / "whole.mkv", 75, gop=10).read_bytes()
    avi = write_video(folder / "whole.avi", 200, gop=12, codec="mpeg4", b_frames=0).read_bytes()
    with av.open(str(folder / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return {
        "empty": b"",
        "text": b"no video\n" * 1000,
        "play list": f"#EXTM3U\n#EXTINF:3,\n{folder / 'whole.mp4'}\n#EXT-X-ENDLIST\n".encode(),
        "sound": (folder / "sound.mp4").read_bytes(),
        "truncated": whole[: len(whole) // 2],
        "truncated behind its header": front[: len(front) // 2],
        "truncated mkv": matroska[: len(matroska) // 2],
        "truncated avi": avi[: len(avi) * 6 // 10],
        "hole": whole[: len(whole) // 4] + bytes(len(whole) // 4) + whole[len(whole) // 2 :],
    }


def test_broken_videos_are_named_with_a_reason_and_the_others_keep_their_places(tmp_path):
    contents = broken(tmp_path / "source")
    folder = tmp_path / "data" / "a"
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / f"{name}.mp4").write_bytes(content)
    write_video(folder / "whole.mp4")
    samples = load_samples("folder", data_dir=tmp_path / "data")
    (batch,) = decoded(samples, SPEC, [[(index, None) for index in range(len(samples))]])
    assert {samples.ids[index] for index, _ in batch.failures.values()} == {f"a/{name}.mp4" for name in contents}
    assert all(place == index and reason for place, (index, reason) in batch.failures.items())
    for place, pixels in enumerate(batch.pixels):
        assert (place in batch.failures) == (pixels.count_nonzero() == 0)
    assert seen(batch.pixels[-1]) == Clip(4, 3).indices(30).tolist()
    with pytest.raises(UserError, match="video 'a/empty.mp4' does not decode .*: mend it"):
        batch.require(samples, "mend it")


def decoded(samples, spec, plan, **options):
    decoder = Decoder(samples, spec, workers=1 if "augment" in options else 3, **options)
    try:
        return list(decoder.batches(plan))
    finally:
        decoder.close()


def seen(clip):
    """Numbers of the frames of uint8 (frames, channels, height, width)."""
    return [number_of(Image.fromarray(frame.permute(1, 2, 0).numpy())) for frame in clip]


@pytest.fixture
def videos(tmp_path):
    """Nine videos of 30 to 38 frames that begin at 0, 100, 200, ..."""
    for video in range(9):
        write_video(tmp_path / f"videos/class{video % 2}/{video}.mp4", 30 + video, first=100 * video, gop=10)
    return load_samples(str(tmp_path / "videos"))


def begin(samples, index):
    return 100 * int(samples.ids[index].split("/")[1][0])


def test_batches_hold_the_clips_that_views_name(videos):
    views = [(index, draw) for index in range(9) for draw in (None, 0, 1, 2)]
    batches = decoded(videos, SPEC, [views[:16], views[16:]], clips=3)
    assert [batch.pixels.shape for batch in batches] == [(16, 4, 3, 48, 64), (20, 4, 3, 48, 64)]
    assert batches[0].pixels.dtype == torch.uint8
    for (index, draw), clip in zip(views, (clip for batch in batches for clip in batch.pixels), strict=True):
        first = begin(videos, index)
        expected = Clip(4, 3, draw or 0, 3).indices(30 + first // 100)
        assert seen(clip) == (first + expected).tolist()


def test_each_frame_goes_through_the_plain_transform(videos):
    spec = replace(SPEC, size=(3, 24, 24), crop_pct=0.9, crop_mode="center")
    (batch,) = decoded(videos, spec, [[(5, None)]])
    transform = spec.transform()
    assert torch.equal(batch.pixels[0], torch.stack([transform(frame) for frame in videos.clip(5, Clip(4, 3))]))


def test_a_backbone_for_images_gets_the_middle_of_the_video_or_of_its_clips(videos):
    spec = replace(SPEC, frames=1)
    (one,) = decoded(videos, spec, [[(0, None)]])
    assert one.pixels.shape == (1, 3, 48, 64)
    assert seen(one.pixels) == [number_of(videos.load(0))] == [begin(videos, 0) + 14]
    (many,) = decoded(videos, spec, [[(0, draw) for draw in range(3)]], clips=3)
    assert seen(many.pixels) == [0, 14, 29]
    (random,) = decoded(videos, spec, [[(0, 0)]], augment="crop")
    assert (random.pixels.shape, random.failures) == ((1, 3, 48, 64), {})


def test_a_selection_keeps_clips_with_their_ids(videos):
    part = videos.select(np.array([7, 2])).select(np.array([1, 0]))
    assert list(part.ids) == [videos.ids[2], videos.ids[7]]
    assert [number_of(next(part.clip(i, Clip(2)))) // 100 * 100 for i in range(2)] == [begin(part, i) for i in range(2)]


def test_what_does_not_go_together_is_refused(videos):
    with pytest.raises(UserError, match="'tiny' holds images, of which there are no clips .*choose"):
        Decoder(tiny_samples(), SPEC, workers=1)
    with pytest.raises(UserError, match="'tiny' holds images"):
        Decoder(tiny_samples(), replace(SPEC, frames=1), workers=1, clips=2)
    with pytest.raises(UserError, match="augment is 'crop', but clips of videos cannot be augmented"):
        Decoder(videos, SPEC, workers=1, augment="crop")


def test_a_missing_pyav_is_one_sentence(videos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"need PyAV: pip install 'losa-cache\[video\]'"):
        load_samples(str(tmp_path / "videos"))


def test_a_folder_holds_images_or_videos(videos, tmp_path):
    assert videos.classes == ("class0", "class1")
    assert list(videos.ids)[:2] == ["class0/0.mp4", "class0/2.mp4"]
    Image.new("RGB", (8, 8)).save(tmp_path / "videos/class1/x.png")
    with pytest.raises(UserError, match="holds videos .'class0/0.mp4'. and images .'class1/x.png'."):
        load_samples(str(tmp_path / "videos"))


@pytest.mark.parametrize("name", ["concat:a|b.mp4", "%03d.MP4", "-i.mp4", "zwölf Frösche.mp4", "http:x.mp4"])
def test_a_file_is_a_file_whatever_its_name(tmp_path, name, monkeypatch):
    write_video(tmp_path / "source.mp4", 10).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert [number_of(image) for image in read_clip(tmp_path.relative_to(tmp_path) / name, Clip(3))] == [4, 5, 6]

"""Which frames make a clip."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from losa_cache.data.clips import Clip

LENGTHS, FRAMES, STRIDES, COUNTS = (st.integers(1, high) for high in (2000, 64, 16, 12))


@given(LENGTHS, FRAMES, STRIDES, COUNTS, st.data())
def test_as_many_frames_as_asked_for_in_the_video_and_in_order(length, frames, stride, count, data):
    number = data.draw(st.integers(0, count - 1))
    indices = Clip(frames, stride, number, count).indices(length)
    assert (indices.shape, indices.dtype) == ((frames,), np.int64)
    assert indices.min() >= 0
    assert indices.max() < length
    assert (np.diff(indices) >= 0).all()


@given(LENGTHS, FRAMES, STRIDES, COUNTS)
def test_clips_are_dense_and_evenly_spaced_from_end_to_end(length, frames, stride, count):
    clips = [Clip(frames, stride, number, count).indices(length) for number in range(count)]
    if length <= (frames - 1) * stride:
        return
    assert all((np.diff(clip) == stride).all() for clip in clips)
    if count == 1:
        before, behind = clips[0][0], length - 1 - clips[0][-1]
        assert abs(before - behind) <= 1
    else:
        assert (clips[0][0], clips[-1][-1]) == (0, length - 1)
        gaps = np.diff([clip[0] for clip in clips])
        assert gaps.max() - gaps.min() <= 2  # each start is rounded


@given(st.integers(2, 64), STRIDES, COUNTS, st.data())
def test_a_short_video_is_spread_over_the_clip_from_its_first_frame_to_its_last(frames, stride, count, data):
    length = data.draw(st.integers(1, (frames - 1) * stride))
    clips = [Clip(frames, stride, number, count).indices(length) for number in range(count)]
    assert all((clip == clips[0]).all() for clip in clips)
    assert (clips[0][0], clips[0][-1]) == (0, length - 1)
    steps = np.diff(clips[0])
    assert steps.max() - steps.min() <= 1
    assert steps.max() <= stride


@given(LENGTHS, FRAMES, COUNTS, st.data())
def test_uniform_clips_take_one_frame_of_every_part_each_elsewhere(length, frames, count, data):
    number = data.draw(st.integers(0, count - 1))
    indices = Clip(frames, 0, number, count).indices(length)
    parts = np.arange(frames + 1) * length / frames
    assert (indices >= np.floor(parts[:-1])).all()
    assert (indices < np.ceil(parts[1:])).all()
    if length >= frames * count:
        clips = [Clip(frames, 0, other, count).indices(length) for other in range(count)]
        assert len(set(np.concatenate(clips).tolist())) == frames * count


def test_by_hand():
    assert Clip(4, 0).indices(40).tolist() == [5, 15, 25, 35]
    assert [Clip(2, 0, number, 2).indices(8).tolist() for number in range(2)] == [[1, 5], [3, 7]]
    assert Clip(4, 2).indices(11).tolist() == [2, 4, 6, 8]
    assert Clip(1).indices(5).tolist() == [2]
    assert [Clip(2, 3, number, 3).indices(10).tolist() for number in range(3)] == [[0, 3], [3, 6], [6, 9]]
    assert Clip(4, 2).indices(2).tolist() == [0, 0, 1, 1]
    assert Clip(3, 5).indices(1).tolist() == [0, 0, 0]

"""Read clips of video files by PyAV: exact frames, and no more decoding than necessary."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from losa_cache.data.clips import Clip
from losa_cache.data.picture import TURN
from losa_cache.data.samples import Samples, from_files
from losa_cache.errors import UserError

if TYPE_CHECKING:  # PyAV is an extra: it is imported where a video is read
    from av import VideoFrame, VideoStream
    from av.container import InputContainer

EXTENSIONS = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v")

_OPEN = {  # by what a file holds, not by its name; a play list, which FFmpeg would follow, is no video
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,mpeg,mpegts,ogg",
    "protocol_whitelist": "file",
}
_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
_MATRIX_BYTES = 36  # nine numbers
_MAY_MISS_SECONDS = 1.0  # at the end: headers are not exact
_MUST_HOLD = 0.9  # of the frames that the header names


class _Packet(NamedTuple):
    """A frame before it is decoded."""

    time: int  # when it is shown: a presentation time stamp, or its number where the container knows no times
    place: int  # its decoding time stamp
    key: bool  # decoding can start here
    hidden: bool  # cut off by the container, and decoded for the sake of others


def from_videos(
    name: str,
    split: str,
    classes: Sequence[str],
    root: Path,
    files: Sequence[tuple[str, int]],
    sizes: Sequence[int] | NDArray[np.int64] | None = None,
) -> Samples:
    """Build samples as :func:`from_files` does; their ``load`` gives the middle frame.

    Raises:
        UserError: if PyAV is not installed.
    """
    if find_spec("av") is None:
        raise UserError(f"data set {name!r} holds videos, which need PyAV: pip install 'losa-cache[video]'.")

    def clip(i: int, wanted: Clip) -> Iterator[Image.Image]:
        return read_clip(root / files[i][0], wanted)

    return replace(
        from_files(name, split, classes, root, files, sizes), load=lambda i: next(clip(i, Clip())), clip=clip
    )


def read_clip(path: Path, clip: Clip) -> Iterator[Image.Image]:
    """Decode a clip's frames one after the other, on this thread; the rotation of a frame is noted in ``info[TURN]``.

    First the packets of the file are listed without decoding: they say when each frame is shown. Decoding starts at the
        last key frame at or before the clip's first frame, and stops after its last frame.

    Yields:
        ``clip.frames`` RGB images, as large as the video.

    Raises:
        ValueError: for a file without a video, or one that ends early.
        av.FFmpegError: for a file, or a frame on the way, that FFmpeg does not read.
    """
    import av
    from av.video.reformatter import VideoReformatter

    with av.open(f"file:{path}", options=_OPEN) as container:
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            raise ValueError("it holds no video")
        stream.codec_context.thread_count = 1  # the decoder's threads take a video each
        packets, timed = _list(container, stream)
        keys = [packet for packet in packets if packet.key]
        times = sorted(packet.time for packet in packets if keys and packet.time >= keys[0].time and not packet.hidden)
        if not times:
            raise ValueError("it holds no frames")
        wanted = [times[i] for i in clip.indices(len(times))]
        start = max(packet for packet in keys if packet.time <= wanted[0])
        # most containers seek by presentation times, some by decoding times; the index of a cut file leads astray
        places = (start.time if timed else start.place, start.place, packets[0].place)
        rgb = VideoReformatter()  # shared: each frame's own, and its to_image, take several times as long
        for frame in _at(wanted, _decode(container, stream, places, timed, wanted[0])):
            image = Image.fromarray(rgb.reformat(frame, format="rgb24").to_ndarray())
            if (turn := _turn(frame)) is not None:
                image.info[TURN] = turn
            yield image


def read_stream(path: Path) -> tuple[int, int, str, str]:
    """Read width, height, pixel format and container of a video, as FFmpeg names them, without decoding a frame.

    Raises:
        ValueError: for a file without a video.
        av.FFmpegError: for a file that FFmpeg does not read.
    """
    import av

    with av.open(f"file:{path}", options=_OPEN) as container:
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            raise ValueError("it holds no video")
        return stream.width, stream.height, stream.pix_fmt or "", container.format.name


def _turn(frame: "VideoFrame") -> Image.Transpose | None:
    """Read how a frame must be turned from its display matrix, which maps x and y from the upper left corner.

    A matrix that does more than exchange or mirror the axes is ignored.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None or matrix.buffer_size < _MATRIX_BYTES:
        return None
    numbers = np.frombuffer(bytes(matrix), dtype=np.int32)[[0, 1, 3, 4]].astype(float)
    a, b, c, d = np.rint(numbers / max(1.0, np.abs(numbers).max())).tolist()  # x' = a x + c y, y' = b x + d y
    return _TURNS.get((a, b, c, d))


def _list(container: "InputContainer", stream: "VideoStream") -> tuple[list[_Packet], bool]:
    """List a video's packets in the order of decoding, and tell whether they know their times.

    Packets of AVI files do not: they are numbered, and decoded from the first one on.
    """
    found, ends = [], dict.fromkeys(range(len(container.streams)), 0)
    for packet in container.demux():
        ends[packet.stream_index] = max(ends[packet.stream_index], (packet.pts or 0) + (packet.duration or 0))
        if packet.stream_index == stream.index and packet.size:
            found.append((packet.pts, packet.dts, packet.is_keyframe, packet.is_discard))
    promised = (container.duration or 0) / 1e6
    end = max(float(ends[each.index] * (each.time_base or 0)) for each in container.streams)
    if promised - end > _MAY_MISS_SECONDS:
        raise ValueError(f"it ends after {end:.1f} of {promised:.1f} seconds")
    timed = container.format.name != "avi" and all(pts is not None for pts, *_ in found)
    if not timed and len(found) < _MUST_HOLD * stream.frames:
        raise ValueError(f"it ends after {len(found)} of {stream.frames} frames")
    packets = []
    for number, (pts, dts, key, hidden) in enumerate(found):
        if timed and pts is not None:
            packets.append(_Packet(pts, pts if dts is None else dts, key, hidden))
        else:
            packets.append(_Packet(number, dts or 0, number == 0, hidden))
    return packets, timed


def _decode(
    container: "InputContainer", stream: "VideoStream", places: Iterable[int], timed: bool, until: int
) -> Iterator[tuple[int, "VideoFrame"]]:
    """Decode from the first of these places whose first frame is no later than ``until``.

    Yields:
        the time at which a frame is shown, or its number, and the frame.

    Raises:
        ValueError: if there is no such place.
    """
    import av

    for place in places:
        with suppress(av.FFmpegError):
            container.seek(place, stream=stream)
        frames = enumerate(container.decode(stream))
        stamped = ((frame.pts if timed and frame.pts is not None else number, frame) for number, frame in frames)
        opening = next(stamped, None)
        if opening is not None and opening[0] <= until:
            return chain([opening], stamped)
    raise ValueError("no frame decodes")


def _at(times: list[int], stamped: Iterable[tuple[int, "VideoFrame"]]) -> Iterator["VideoFrame"]:
    """Choose, for each time, the frame that is shown then: the last one that is not later."""
    waiting = deque(times)
    last: list[tuple[float, None]] = [(math.inf, None)]
    for (_, frame), (until, _) in pairwise(chain(stamped, last)):
        while frame is not None and waiting and waiting[0] < until:
            waiting.popleft()
            yield frame
        if not waiting:
            return

"""Videos that the tests write, whose frames hold their own numbers as black and white blocks."""

from fractions import Fraction

import av
import numpy as np

SIZE = 64, 48


def numbered(number: int) -> np.ndarray:
    """Twelve blocks, a bit each, large enough to survive compression."""
    bits = np.array([(number >> bit) & 1 for bit in range(12)], dtype=np.uint8).reshape(3, 4)
    return np.kron(bits * 255, np.ones((16, 16), dtype=np.uint8))[:, :, None].repeat(3, axis=2)


def number_of(image) -> int:
    """Read the number back from an RGB image of 64 x 48."""
    grey = np.asarray(image.convert("L"))
    assert grey.shape == (48, 64)
    return sum(1 << bit for bit in range(12) if grey[8 + 16 * (bit // 4), 8 + 16 * (bit % 4)] > 127)


def write_video(
    path,
    frames=30,
    *,
    codec="libx264",
    gop=250,
    b_frames=None,
    options=None,
    container=None,
    times=None,
    audio=False,
    first=0,
    rotation=None,
):
    """Write numbered frames at 25 a second, or at ``times`` in milliseconds.

    ``rotation`` is (degrees counter-clockwise, mirrored after that), for the display matrix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=25, options=options or {})
        (stream.width, stream.height), stream.pix_fmt = SIZE, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.thread_count = gop, 1
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        sound = file.add_stream("aac", rate=16000, layout="mono") if audio else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(first + number), format="rgb24")
            frame.pts = 40 * number if times is None else times[number]
            frame.time_base = Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 640 * frames), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 16000, 0
            file.mux(sound.encode(silence))
            file.mux(sound.encode())
    return path

"""Choice of the frames of a clip; pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Clip:
    """Clip ``number`` of ``count`` clips of a video. It has ``frames`` frames, ``stride`` apart ("dense").

    With a stride of 0 the frames are spread evenly over the whole video ("uniform"): one in each of ``frames`` equal
    parts, at another place for each clip. Otherwise the starts of the clips are evenly spaced: the first clip begins
    with the video, the last one ends with it, and a single clip is in the middle. (*Not from the paper*, which does not
    say where its clips lie.)
    """

    frames: int = 1
    stride: int = 1
    number: int = 0
    count: int = 1

    def indices(self, length: int) -> NDArray[np.int64]:
        """Choose frames of a video of ``length`` >= 1 frames.

        If the video is shorter than the clip, the frames are spread evenly from its first to its last, and some are
        left out or repeated (*not from the paper*).

        Returns:
            int64 ``(frames,)``, non-decreasing, 0 <= index < length.
        """
        if self.stride == 0:
            within = (self.number + 0.5) / self.count
            return ((np.arange(self.frames) + within) * length / self.frames).astype(np.int64)
        spare = length - 1 - (self.frames - 1) * self.stride
        if spare < 0:
            return np.linspace(0, length - 1, self.frames).round().astype(np.int64)
        where = self.number / (self.count - 1) if self.count > 1 else 0.5
        return round(spare * where) + self.stride * np.arange(self.frames, dtype=np.int64)

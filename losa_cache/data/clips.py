"""Which frames of a video make a clip; pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Clip:
    """Clip ``number`` of ``count`` of a video: ``frames`` frames, every ``stride``-th ("dense").

    With a stride of 0 they are spread evenly over the whole video ("uniform"): one in each of ``frames`` equal parts,
    at another place for each clip. Else the clips' starts are evenly spaced: the first clip is where the video begins,
    the last where it ends; a single one is in the middle. (*Not from the paper*, which does not say where its clips
    lie.)
    """

    frames: int = 1
    stride: int = 1
    number: int = 0
    count: int = 1

    def indices(self, length: int) -> NDArray[np.int64]:
        """Choose frames of a video of ``length`` >= 1 frames.

        A video shorter than the clip is spread evenly over it, first frame to last, with frames left out or repeated
        (*not from the paper*).

        Returns:
            int64 ``(frames,)``, never falling, 0 <= index < length.
        """
        if self.stride == 0:
            within = (self.number + 0.5) / self.count
            return ((np.arange(self.frames) + within) * length / self.frames).astype(np.int64)
        spare = length - 1 - (self.frames - 1) * self.stride
        if spare < 0:
            return np.linspace(0, length - 1, self.frames).round().astype(np.int64)
        where = self.number / (self.count - 1) if self.count > 1 else 0.5
        return round(spare * where) + self.stride * np.arange(self.frames, dtype=np.int64)

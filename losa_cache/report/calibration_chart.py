"""Stated probabilities against observed shares, as a picture."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from losa_cache.sweep.report.drawing import BLUE, DOT, PALE, legend, panels
from losa_cache.tasks.measures.calibration import Bins

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class CalibrationChart:
    """A reliability diagram (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).

    Attributes:
        samples, stated, observed: of each bin, ``(bins,)``: their number, and sums over them.
        x, y: what is stated and observed.
    """

    samples: NDArray[np.float64]
    stated: NDArray[np.float64]
    observed: NDArray[np.float64]
    x: str
    y: str
    name: str = "calibration"
    caption: str = "Calibration: in each of 15 bins of stated probability, what was observed. On the line both agree."

    @classmethod
    def of(cls, bins: Bins, x: str, y: str) -> "CalibrationChart":
        """Take the bins of one trial."""
        return cls(bins.samples[0].numpy(), bins.stated[0].numpy(), bins.observed[0].numpy(), x, y)

    def draw(self) -> "Figure":
        """Draw the bins that are not empty, and beside them how many samples each has."""
        figure, (curve, bars) = panels(1, 2, 3.6)
        there = self.samples > 0
        curve.plot([0, 1], [0, 1], color=DOT, linewidth=1, linestyle=":", label="calibrated")
        stated, observed = (own[there] / self.samples[there] for own in (self.stated, self.observed))
        curve.plot(stated, observed, "o-", color=BLUE, markersize=4, label="observed", clip_on=False)
        curve.set(xlim=(0, 1), ylim=(0, 1), xlabel=self.x, ylabel=self.y)
        bins = len(self.samples)
        bars.bar((np.arange(bins) + 0.5) / bins, self.samples, width=0.9 / bins, color=PALE)
        bars.set(xlim=(0, 1), xlabel=self.x, ylabel="samples")
        legend(figure)
        return figure

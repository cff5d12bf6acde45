"""A task whose classifier learns standardised numbers. Nothing here imports torch when it is imported."""

from typing import TYPE_CHECKING

from losa_cache.tasks.base import Task, Vector

if TYPE_CHECKING:
    from torch import Tensor, nn

MEAN, DEVIATION = "mean", "deviation"
"""Names of the constants."""


class Standardised(Task):
    """A task that learns numbers with mean 0 and standard deviation 1 on the training samples.

    When the training is over, mean and deviation go into the classifier's weights.
    """

    mean, deviation = Vector([0.0]), Vector([1.0])
    """Mean and standard deviation of each output on the training samples."""
    standardised = False
    """Whether outputs are still standardised: only while an adapter is trained."""

    def predictions(self, outputs: "Tensor") -> "Tensor":
        """Give numbers in the unit of what is learned."""
        if not self.standardised:
            return outputs
        return outputs * self.deviation.like(outputs) + self.mean.like(outputs)

    def fold(self, classifier: "nn.Linear") -> None:
        """Have the classifier give numbers in that unit."""
        from torch import no_grad

        self.fold_probe(classifier)
        with no_grad():
            classifier.bias.add_(self.mean.like(classifier.bias))

    def fold_probe(self, probe: "nn.Linear") -> None:
        """Have the probe give differences in that unit: the classifier adds the mean."""
        from torch import no_grad

        with no_grad():
            probe.weight.mul_(self.deviation.like(probe.weight)[:, None])
            probe.bias.mul_(self.deviation.like(probe.bias))

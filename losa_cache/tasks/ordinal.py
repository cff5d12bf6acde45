"""Classes with an order, such as grades of a disease: *not from the paper*.

There is an output for each class but the last: how probable it is that the true class is a higher one, if it is no
lower one. So the probabilities that the true class is above the first, the second and so on fall, whatever the weights
are (CORN: Shi, Cao and Raschka, "Deep Neural Networks for Rank-Consistent Ordinal Regression Based On Conditional
Probabilities", 2021). CORAL, by the same authors, needs weights that all outputs share; CORN does not, so its
classifier is linear like that of the other tasks.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from losa_cache.tasks.classification import LOSS, Classification, percent
from losa_cache.tasks.measures.metric import Metric

if TYPE_CHECKING:
    from torch import Tensor


def _apart(log_probabilities: "Tensor", labels: "Tensor") -> "Tensor":
    return (median(log_probabilities) - labels).abs().double()[..., None]


def _right(log_probabilities: "Tensor", labels: "Tensor") -> "Tensor":
    return (median(log_probabilities) == labels)[..., None]


def median(log_probabilities: "Tensor") -> "Tensor":
    """Give the lowest class above which at most half of the probability lies, int64 ``(...)``."""
    above = 1 - log_probabilities.double().exp().cumsum(-1)[..., :-1]
    return (above > 0.5).sum(-1)


TOP1 = Metric("top1", "top-1", "%", higher=True, digits=1, terms=_right, value=percent, share=True)
"""The share of samples whose median class is the true one."""
MAE = Metric("mae", "mean absolute error", "classes", higher=False, digits=3, terms=_apart)
"""How many classes the answer is away from the true one."""


class Ordinal(Classification):
    """Classes with an order. Targets are class numbers, int64 ``(batch,)``. Predictions are log-probabilities of the
    classes; the answer is their median, which has the least expected distance in classes.
    """

    name = "ordinal"
    metrics = (LOSS, MAE, TOP1)
    more = ()
    selected_by = "mae"
    training_losses = ()
    training_loss = ""
    loss_options = ()
    mixes = weighs_classes = False
    probes = ""

    def outputs(self, names: Sequence[str]) -> int:
        """Say how many steps there are from class to class."""
        return super().outputs(names) - 1

    def losses(self, outputs: "Tensor", targets: "Tensor", **options: "Tensor") -> "Tensor":
        """Give the cross entropy of every sample in nats: that of the steps up to its class, and of stopping there.

        (Equation 4 of the paper, averaged over samples and not over the conditional training sets.)
        """
        return -_steps(outputs, targets)

    def loss(self, outputs: "Tensor", targets: "Tensor", **options: float) -> "Tensor":
        """Give the mean of :meth:`losses`."""
        return self.losses(outputs[None], targets).mean()

    def predictions(self, outputs: "Tensor") -> "Tensor":
        """Give log-probabilities of the classes, ``(K, batch, outputs + 1)``."""
        from torch import cat
        from torch.nn.functional import logsigmoid

        reached = logsigmoid(outputs).cumsum(-1)
        before = cat([outputs.new_zeros(*outputs.shape[:-1], 1), reached], -1)
        stops = cat([logsigmoid(-outputs), outputs.new_zeros(*outputs.shape[:-1], 1)], -1)
        return before + stops

    def likeliest(self, predictions: "Tensor", count: int) -> "Tensor":
        """Put the median class first, then the others by probability."""
        from torch.nn.functional import one_hot

        first = one_hot(median(predictions), predictions.shape[-1])  # log-probabilities are at most 0
        return predictions.where(first == 0, 1.0).topk(count).indices

    def decided(self, predictions: "Tensor") -> "Tensor":
        """Give the median class."""
        return median(predictions)


def _steps(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """Sum the log-probabilities of the steps up to a sample's class, and of stopping there, ``(K, batch)``."""
    from torch import arange
    from torch.nn.functional import logsigmoid

    steps = arange(outputs.shape[-1], device=outputs.device)
    taken, stopped = steps < targets[:, None], steps == targets[:, None]
    return logsigmoid(outputs).where(taken, logsigmoid(-outputs).where(stopped, 0)).sum(-1)


TASK = Ordinal()

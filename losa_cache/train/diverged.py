"""A training whose numbers are no numbers any more, and where that is found.

The loss of a step is that of the weights before it. So a last step that goes too far shows in the weights, or in what
they make of images.
"""

import torch

from losa_cache.cache.manifest import Manifest
from losa_cache.errors import UserError
from losa_cache.train.config import TrainConfig
from losa_cache.train.sampler import epoch_requests
from losa_cache.train.training_data import TrainingData
from losa_cache.tuned.tuned import Model


class DivergedError(UserError):
    """The loss, a weight or an output is no longer a number."""


def diverged(what: str, config: TrainConfig) -> DivergedError:
    """Make the error of what is no longer a number."""
    return DivergedError(f"{what}: lower --lr (it is {config.peak_lr}) or raise --precision.")


def blame(what: str, manifest: Manifest) -> UserError:
    """Make the error of what is no number because the backbone gave values that are none."""
    return UserError(
        f"{what}, and {manifest.non_finite:,} values that the backbone gave are infinite or not numbers: extract with "
        "--precision float32, or without the images that they come from."
    )


def require_weights(model: Model, config: TrainConfig, *, epoch: int) -> None:
    """Refuse trained weights that are not finite, after an epoch (from 0).

    Raises:
        DivergedError: naming the learning rate.
    """
    trained = [own.detach() for own in model.parameters() if own.requires_grad]
    if not bool(torch.stack([own.isfinite().all() for own in trained]).all()):
        raise diverged(f"epoch {epoch + 1} leaves weights that are infinite or not numbers", config)


@torch.inference_mode()
def require_outputs(model: Model, data: TrainingData, config: TrainConfig) -> None:
    """Refuse a trained model whose predictions of a training batch are not finite.

    Raises:
        DivergedError: naming the learning rate.
    """
    model.eval()
    options = {"batch_size": config.batch_size, "seed": config.seed, "epoch": config.epochs - 1}
    first = epoch_requests(data.chosen.train, weights=data.chosen.weights, **options)[:1]
    for batch in data.source.batches(first):
        with torch.autocast(data.device.type, data.autocast, enabled=data.autocast is not None):
            outputs = model(batch.blocks)[None].float()
            finite = bool(data.task.predictions(outputs).isfinite().all())
        if not finite:
            raise diverged("its predictions are infinite or not numbers", config)

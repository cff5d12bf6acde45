"""LoRA for benchmarks/accuracy.py: peft's, on timm's qkv layers, its rate chosen on held-out images.

    python benchmarks/accuracy_lora.py DATA_DIR --weights FILE    # how many images/s a training step reaches here

Rank 8, scale 2 (alpha 16), a linear head on the trunk's own pooling, AdamW with decay 1e-4 of matrices, warm-up over a
tenth of the steps and a cosine, gradients of norm 1 at most, batches of 64, 20 epochs, no augmentation: the other
methods see plain images, too. Images stay in memory as uint8; products are bfloat16 where the device has it. On a GPU a
step is replayed as a CUDA graph, as those of the other methods are.
"""

import argparse
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timing import synchronize
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.backbone import Backbone
from losa_cache.data.decode import View
from losa_cache.inputs import open_inputs
from losa_cache.machine.device import choose_device, default_workers, has_bfloat16, machine
from losa_cache.tasks.classification import Classification
from losa_cache.train.batch import Batch
from losa_cache.train.graph import recorder_for
from losa_cache.train.loop import lr_factor
from losa_cache.train.step import AdapterStep

RANK, ALPHA, EPOCHS, BATCH, DECAY = 8, 16, 20, 64, 1e-4
RATES = (5e-4, 1e-3, 2e-3)


@dataclass(frozen=True)
class Images:
    """A split in memory.

    Attributes:
        pixels: uint8 ``(N, channels, height, width)``, as the backbone wants them.
        labels: int64 ``(N,)``.
        ids: of each.
        backbone: frozen.
        classes: how many.
    """

    pixels: Tensor
    labels: Tensor
    ids: list[str]
    backbone: Backbone
    classes: int

    def rows(self, ids: Sequence[str]) -> Tensor:
        """Numbers of the images with these ids, in their order."""
        place = {name: row for row, name in enumerate(self.ids)}
        return torch.tensor([place[name] for name in ids])


def load_images(backbone: str | Backbone, *, limit: int | None = None, **source: Any) -> Images:
    """Decode a split (``data_dir``, ``split``, ``weights``, ``img_size`` as of ``losa_cache.extract``)."""
    inputs = open_inputs(backbone, "folder", device=choose_device(), limit=limit, **source)
    views: list[list[View]] = [[(row, None)] for row in range(len(inputs.samples))]
    decoder = inputs.decoder(default_workers())
    found = []
    for batch in decoder.batches(views):
        batch.require(inputs.samples, "leave it out")
        found.append(batch.pixels.clone())
    decoder.close()
    labels = torch.from_numpy(inputs.samples.labels)
    return Images(torch.cat(found), labels, list(inputs.samples.ids), inputs.backbone, len(inputs.samples.classes))


class Classifier(nn.Module):
    """A trunk and a linear head."""

    def __init__(self, trunk: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of normalised images."""
        return self.head(self.trunk(images))


class LoRA:
    """A model in training.

    Args:
        images: to train on.
        rows: which of them.
        rate: the peak.
        epochs: passes over them.
        seed: of the start and the order.
    """

    def __init__(self, images: Images, rows: Tensor, *, rate: float, epochs: int, seed: int) -> None:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        model = Classifier(copy.deepcopy(images.backbone.model), images.backbone.width, images.classes)
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["qkv"], modules_to_save=["head"])
        self.model = get_peft_model(model, config).to(images.backbone.device).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in trained)
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": DECAY},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        device = images.backbone.device
        self.step = AdapterStep(
            lambda blocks: self.model(blocks[0]),
            torch.optim.AdamW(groups, lr=rate, fused=True),
            task=Classification(),
            clip_grad=1.0,
            options={"label_smoothing": 0.0},
            autocast=torch.bfloat16 if has_bfloat16(device) else None,
            recorder=recorder_for(device),
        )
        self.images, self.rows, self.rate, self.epochs, self.seed = images, rows, rate, epochs, seed

    def fit(self, *, steps: int | None = None) -> None:
        """Train to the last epoch, or for so many steps."""
        order = torch.Generator().manual_seed(self.seed)
        total, step = self.epochs * math.ceil(len(self.rows) / BATCH), 0
        for _ in range(self.epochs):
            for part in self.rows[torch.randperm(len(self.rows), generator=order)].split(BATCH):
                if step == steps:
                    return
                self.step.rates.fill_(self.rate * lr_factor(step, total=total, warmup=round(0.1 * total)))
                labels = self.images.labels[part].to(self.images.backbone.device)
                self.step(Batch([_normalised(self.images, part)], labels, []))
                step += 1

    @torch.inference_mode()
    def logits(self, images: Images, rows: Tensor) -> Tensor:
        """Float32 ``(rows, classes)`` on the CPU."""
        self.model.eval()
        found = torch.cat([self._logits(images, part).cpu() for part in rows.split(BATCH)])
        self.model.train()
        return found

    def _logits(self, images: Images, rows: Tensor) -> Tensor:
        device = images.backbone.device
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            return self.model(_normalised(images, rows)).float()


def _normalised(images: Images, rows: Tensor) -> Tensor:
    return images.backbone.input.normalise(images.pixels[rows].to(images.backbone.device))


@dataclass(frozen=True)
class Outcome:
    """What tuned LoRA came to: the test images it gets right, in the order asked for, and at what cost."""

    correct: NDArray[np.bool_]
    parameters: int
    seconds: float
    chosen: dict[str, float]


def tuned(
    train: Images, test: Images, *, fit: Sequence[str], held_out: Sequence[str], test_ids: Sequence[str],
    epochs: int = EPOCHS, seed: int = 0,
) -> Outcome:  # fmt: skip
    """Choose the rate on held-out images (of equal top-1 by the loss), train again on all, test once.

    Args:
        train, test: the images.
        fit, held_out: ids of those that are trained on while the rate is chosen, and of those that it is chosen by.
        test_ids: in the order of the result.
        epochs: of every training.
        seed: of every training.
    """
    started = perf_counter()
    rows, held = train.rows(fit), train.rows(held_out)
    standing = {}
    for rate in RATES:
        run = LoRA(train, rows, rate=rate, epochs=epochs, seed=seed)
        run.fit()
        logits, labels = run.logits(train, held), train.labels[held]
        standing[rate] = (float((logits.argmax(1) == labels).double().mean()), -float(F.cross_entropy(logits, labels)))
    best = max(standing, key=standing.__getitem__)
    final = LoRA(train, torch.cat([rows, held]), rate=best, epochs=epochs, seed=seed)
    final.fit()
    synchronize()
    seconds = perf_counter() - started
    asked = test.rows(test_ids)
    correct = (final.logits(test, asked).argmax(1) == test.labels[asked]).numpy()
    return Outcome(correct, final.parameters, seconds, {"lr": best})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    source = {"data_dir": arguments.data_dir, "weights": arguments.weights, "img_size": arguments.img_size}
    images = load_images(arguments.backbone, limit=BATCH, **source)
    run = LoRA(images, torch.arange(BATCH), rate=RATES[0], epochs=2 + arguments.steps, seed=0)
    run.fit(steps=2)
    synchronize()
    started = perf_counter()
    run.fit(steps=arguments.steps)
    synchronize()
    seconds = (perf_counter() - started) / arguments.steps
    print(
        f"{machine()}: LoRA, {arguments.backbone}, {run.parameters:,} parameters, batches of {BATCH}: "
        f"{seconds:.2f} s a step, {BATCH / seconds:.1f} images/s"
    )


if __name__ == "__main__":
    main()

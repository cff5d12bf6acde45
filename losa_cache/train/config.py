"""The options of a training run."""

from dataclasses import dataclass

from losa_cache.errors import UserError

DEFAULT_LR = {"losa": 1e-3, "linear": 1e-2}


@dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters; the defaults follow the VTAB-1k literature's recipe (*not from the paper*).

    Attributes:
        side: ``losa``, or ``linear``: the probe that everything is measured against.
        rank: LoSA's r.
        layers: which of the cached blocks: ``"all"``, K evenly spaced, or a list.
        epochs: passes over the training rows.
        lr: peak learning rate of AdamW; by default 1e-3 for ``losa``, 1e-2 for ``linear`` (a probe of 1e-3 lags).
        weight_decay: of matrices; biases and scales are not decayed.
        batch_size: samples a step.
        warmup: share of the steps over which the rate rises from 0; it falls to 0 along a cosine after that.
        label_smoothing: of the training loss.
        clip_grad: largest norm of a step's gradient.
        val_fraction: share of the cache's samples held out, by a hash of their ids.
        seed: of the start and the order.
    """

    side: str = "losa"
    rank: int = 16
    layers: str | int | list[int] = "all"
    epochs: int = 100
    lr: float | None = None
    weight_decay: float = 1e-4
    batch_size: int = 64
    warmup: float = 0.1
    label_smoothing: float = 0.0
    clip_grad: float = 1.0
    val_fraction: float = 0.1
    seed: int = 0

    @property
    def peak_lr(self) -> float:
        """The learning rate given, or the side's default."""
        return DEFAULT_LR[self.side] if self.lr is None else self.lr

    def __post_init__(self) -> None:
        if self.side not in DEFAULT_LR:
            raise UserError(f"unknown side network {self.side!r}: choose one of {', '.join(DEFAULT_LR)}.")
        for name, low, high in (
            ("epochs", 1, float("inf")),
            ("batch_size", 1, float("inf")),
            ("peak_lr", 0, float("inf")),
            ("weight_decay", 0, float("inf")),
            ("clip_grad", 0, float("inf")),
            ("warmup", 0, 1),
            ("label_smoothing", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(
                    f"{name.removeprefix('peak_').replace('_', '-')} is {value}: it must lie between {low} and {high}."
                )

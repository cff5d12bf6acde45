"""The options of a training run."""

from dataclasses import dataclass
from typing import Annotated, Any

from losa_cache.errors import LARGEST_SEED, UserError, require_counts
from losa_cache.layers import require_layers
from losa_cache.options import Option
from losa_cache.points import ALL_LAYERS, CONV, DECODERS, EMBEDDING, HEADS, LAST, STARTS
from losa_cache.sidenet.spec import DEFAULT, SIDES, SideSpec, listed, side_spec, stackable
from losa_cache.tasks import CLASSIFICATION, Task, get_task, list_losses, list_metrics, require_task, task_names
from losa_cache.tuned.spec import LARGEST_RANK, Method, listed_methods, parse_method
from losa_cache.tuned.spec import SIDES as NAMED_SIDES

SHUFFLE, BALANCED, WEIGHT = "shuffle", "balanced", "weight"
PAPER = "paper"
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    PAPER: {"head": LAST, "dropout": 0.0, "epochs": 100, "weight_decay": 1e-4, "label_smoothing": 0.0},
}
"""What ``recipe`` of :func:`losa_cache.train` changes in the options. The paper fixes the side network, the frozen tail
and the classifier behind it. Its optimiser is not published: ``paper`` follows the VTAB-1k literature."""
EARLIER: dict[str, Any] = {"head": LAST, "dropout": 0.0}
"""What runs and sweeps of earlier versions did, whose options do not say."""

NUMBER = (int, float)
BOUNDS: tuple[tuple[str, Any, float, float], ...] = (
    ("epochs", int, 1, 10**9),
    ("batch_size", int, 1, 2**31),
    ("chosen_rank", int, 0, LARGEST_RANK),  # what is built says more: at least 1, at most the backbone's width
    ("seed", int, 0, LARGEST_SEED),
    ("peak_lr", NUMBER, 0, 1e38),
    ("weight_decay", NUMBER, 0, 1e6),
    ("clip_grad", NUMBER, 0, float("inf")),  # infinite: never clipped
    ("warmup", NUMBER, 0, 1),
    ("label_smoothing", NUMBER, 0, 1),
    ("dropout", NUMBER, 0, 0.99),
    ("val_fraction", NUMBER, 0, 1),  # what is left on either side is known with the samples
)
"""The bounds of every number: its field, kind, least and largest value."""
RANK = 16
"""Inner width of a side network. Methods that train inside the backbone have their own default."""

IDLE: dict[str, tuple[Any, ...]] = {"layers": ("all",), "start": ("output",), "dropout": (0.1, 0.0)}
"""Options that a method leaves nothing to do, and the values that they may have beside one: defaults, and those of
recipes. ``head`` is another, whose every value may be one of these."""


def idle(name: str, value: Any, method: str) -> UserError:
    """Say that a method leaves an option nothing to do."""
    return UserError(
        f"{name} is {value!r}, but method {method!r} trains inside the backbone, whose last output a classifier reads: "
        "leave it out."
    )


@dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters. The defaults are *not from the paper*; ``RECIPES`` has others.

    Attributes:
        task: what is learned, by its name in :mod:`losa_cache.tasks`.
        targets: name of the target set of the cache that is learned. Default: the cache's own labels for tasks that
            learn classes; for other tasks the only target set of their kind.
        loss: training loss, by its name (``Task.training_losses``); by default the task's first.
        class_weights: weight of each class in the loss: ``balanced``, or a CSV file that begins with the line
            ``name,weight``. Default: all classes weigh the same.
        metric: metric that searches, the choice and reports look at (``Task.metrics``, ``Task.more``); by default the
            task's own.
        group_by: name of a target set of the cache whose classes are groups, such as patients, or a CSV file that
            begins with the line ``id,group``: all samples of a group are held out, or none.
        decoder: of masks and depth maps, ``conv`` or ``linear`` (``losa_cache.sidenet.decoder``).
        side: name of the side network (``losa_cache.sidenet.spec.SIDES``): ``losa``; ``mlp`` or ``ladder``, of Table 3;
            ``linear``: the linear probe, which is the baseline; ``fusion``, one attention query over the class token
            and the mean of all layers; ``attentive``, one query over all tokens of the last layer; or ``res_tuning``,
            the bypass of Res-Tuning.
        method: what is trained inside the backbone in place of a side network, as its name and variant are written
            (:mod:`losa_cache.tuned.spec`): ``lora``, ``vpt:deep``. Then ``side`` becomes ``linear``, ``head`` becomes
            ``last``, and ``layers``, ``start`` and ``dropout`` have nothing to do. Names of side networks, ``losa``,
            ``linear`` and ``lst``, set ``side`` and leave no method.
        grad_checkpointing: with a method, compute each block again in the backward pass, in place of keeping its
            activations.
        rank: inner width r of the side network, if it has one (``SideSpec.rank``), or of the method; ``None``: the
            default, :attr:`chosen_rank`.
        layers: the cached blocks to read: ``"all"``, K for K evenly spaced ones, or a list of block numbers.
        start: what the side network refines: ``output``, y_0 = b_L; or ``embedding``, y_0 = b_0 (Table 6).
        epochs: passes over the training rows.
        lr: peak learning rate of AdamW; by default the side network's own (``SideSpec.lr``), or the method's.
        weight_decay: weight decay of AdamW on matrices; biases and scales are not decayed.
        batch_size: samples in a step.
        warmup: share of the steps over which the rate rises from 0; it falls to 0 along a cosine after that.
        label_smoothing: label smoothing of the training loss.
        clip_grad: gradients of a larger norm are scaled down to this norm.
        head: what the classifier reads: ``last``, the feature vector that the frozen tail computes from y_k, as in the
            paper; or ``all`` (*not from the paper*): the class token and the mean of the patches of y_k, with the
            logits of a tuned probe on those of all layers added (``losa_cache.train.all_layers``). For side networks
            that refine y_0.
        dropout: dropout on what the side network adds to y_0, with ``head="all"``.
        sampling: how an epoch draws its samples; it always has as many draws as there are training samples:
            ``shuffle``, each once; ``balanced``, every class equally often; ``weight``, as the target set of that name
            says, which is a column of numbers; or a CSV file that begins with the line ``id,weight`` and gives every
            training sample a weight, finite and at least 0: how often it comes, in relation to the others.
        limit: train on only this many samples, chosen by a hash of their ids after the held-out ones are taken. A
            smaller limit takes a subset of a larger one's samples, and all are validated on the same images.
        val_fraction: share of the samples held out for validation, chosen by a hash of their ids.
        val_ids: a file with one id a line: hold out exactly these samples, in place of ``val_fraction``.
        seed: seed of the initial weights and of the order of the samples.
    """

    task: Annotated[str, Option(f"Task to learn: {', '.join(task_names())}.")] = CLASSIFICATION
    targets: Annotated[
        str | None,
        Option(
            "Target set of the cache to learn (losa-cache targets lists them); default: the cache's labels, or the "
            "only target set that the task can learn."
        ),
    ] = None
    loss: Annotated[str | None, Option(f"Training loss: {list_losses()}; default: the first one of the task.")] = None
    class_weights: Annotated[
        str | None,
        Option(
            "Weights of the classes in the loss: balanced, or a CSV file of weights with the heading name,weight.",
            path=True,
        ),
    ] = None
    metric: Annotated[
        str | None,
        Option(f"Metric by which searches choose and reports compare: {list_metrics()}; default: the task's own."),
    ] = None
    group_by: Annotated[
        str | None,
        Option(
            "Groups of which all samples are held out or none, such as patients: a target set of classes in the "
            "cache, or a CSV file with the heading id,group.",
            path=True,
        ),
    ] = None
    decoder: Annotated[
        str,
        Option(
            "Decoder of masks and depth maps: conv (16 outputs a patch, from it and its neighbours) or linear (one "
            "output a patch)."
        ),
    ] = CONV
    side: Annotated[
        str,
        Option(
            f"Side network: {listed(list(SIDES), 'or')}.",
            searched=f"Side network: {listed(stackable(), 'or')}.",
        ),
    ] = DEFAULT
    method: Annotated[
        str | None,
        Option(
            f"With --online: train inside the backbone, in place of a side network: {listed_methods()}. Of variants "
            "the first is the default; K is a number of blocks, by default 1. "
            f"{', '.join(NAMED_SIDES)} are side networks, as of --side, and need no --online."
        ),
    ] = None
    grad_checkpointing: Annotated[
        bool,
        Option("With --method: compute blocks again in the backward pass, which takes less memory and more time."),
    ] = False
    rank: Annotated[
        int | None,
        Option(
            "Rank r: inner width of the side network or of the method, if it has one; of vpt the number of prompts, of "
            f"fact the rank of the factors; default: {RANK}, or the method's own.",
            searched=f"Rank r: inner width of the side network, if it has one; default: {RANK}.",
        ),
    ] = None
    layers: Annotated[
        str | int | list[int],
        Option(
            "Layers of the cache to read: all, a number K (K evenly spaced layers, the last one among them), "
            "or a list of block numbers such as 3,6,12.",
            searched="Numbers of layers to read, such as 3,6,12: each trial reads so many, evenly spaced; or all.",
        ),
    ] = "all"
    start: Annotated[
        str,
        Option(
            "What the side network refines: output (y_0 is the last block's output) or embedding (y_0 is the "
            "first block's input).",
            searched=True,
        ),
    ] = "output"
    epochs: Annotated[int, Option("Number of passes over the training samples.", searched=True)] = 30
    lr: Annotated[
        float | None, Option("Peak learning rate; default: the side network's or the method's own.", searched=True)
    ] = None
    weight_decay: Annotated[
        float, Option("Weight decay of AdamW; biases and scales are not decayed.", searched=True)
    ] = 1e-2
    batch_size: Annotated[int, Option("Samples in a training step.", searched=True)] = 64
    warmup: Annotated[float, Option("Share of the steps over which the learning rate rises from 0.")] = 0.1
    label_smoothing: Annotated[float, Option("Label smoothing of the training loss.", searched=True)] = 0.1
    clip_grad: Annotated[float, Option("Gradients with a larger norm are scaled down to this norm.", searched=True)] = (
        1.0
    )
    head: Annotated[
        str,
        Option(
            "What the classifier reads: all (the side network's output, and the class token and mean of every "
            "layer) or "
            "last (the side network's output alone, as in the paper).",
            searched=True,
        ),
    ] = ALL_LAYERS
    dropout: Annotated[
        float,
        Option("Dropout on what the side network adds to y_0, with --head all.", searched=True),
    ] = 0.1
    sampling: Annotated[
        str,
        Option(
            "How an epoch draws samples: shuffle (each once), balanced (every class equally often), weight (as the "
            "target set of that name says), or a CSV file of weights with the heading id,weight.",
            path=True,
        ),
    ] = SHUFFLE
    limit: Annotated[
        int | None,
        Option(
            "Train on only this many samples, chosen by a hash of their ids; the held-out samples stay the "
            "same. Default: all."
        ),
    ] = None
    val_fraction: Annotated[
        float, Option("Share of the samples held out for validation, chosen by a hash of their ids.")
    ] = 0.1
    val_ids: Annotated[
        str | None, Option("File of ids, one a line: hold out exactly these samples for validation.", path=True)
    ] = None
    seed: Annotated[
        int,
        Option("Seed of the initial weights, of the order of the samples, and of their augmentation.", searched=True),
    ] = 0

    @property
    def learns(self) -> Task:
        """The task, with the metric and the loss that are asked for, before it is fitted to a data set."""
        return get_task(self.task).choosing(self.metric).trained_by(self.loss)

    @property
    def spec(self) -> SideSpec:
        """What is known of the side network."""
        return side_spec(self.side)

    @property
    def trains(self) -> Method | None:
        """The method that trains inside the backbone; ``None``: a side network is trained."""
        return None if self.method is None else parse_method(self.method, self.rank)

    @property
    def trained(self) -> str:
        """The name of what is trained, the method or the side network."""
        return str(self.trains or self.side)

    @property
    def peak_lr(self) -> float:
        """The learning rate given, or the default of the side network or the method."""
        own = self.spec.lr if self.trains is None else self.trains.spec.lr
        return own if self.lr is None else self.lr

    @property
    def chosen_rank(self) -> int:
        """The inner width given, or the default of side networks or the method."""
        if self.trains is not None:
            return self.trains.rank
        return RANK if self.rank is None else self.rank

    @property
    def reads_embedding(self) -> bool:
        """Whether b_0 is needed: some side networks refine no y_0, whatever the start."""
        return self.start == EMBEDDING and self.spec.start

    @property
    def dense(self) -> bool:
        """Whether there is an output for each patch, made by a decoder."""
        return get_task(self.task).dense

    @property
    def reads_all(self) -> bool:
        """Whether the classifier reads all layers: some side networks have their own way, whatever the head.

        A decoder reads what the head says beside every side network.
        """
        return self.head == ALL_LAYERS and (self.spec.start or self.dense)

    @property
    def reads_last(self) -> bool:
        """Whether the last layer alone is read, whatever layers and tap were chosen."""
        return self.spec.last_layer and not (self.dense and self.reads_all)

    @property
    def reads_all_tokens(self) -> bool:
        """Whether more of a point is read than pooled caches hold."""
        return self.dense or not self.spec.pooled_rows

    def __post_init__(self) -> None:
        self._settle_method()
        require_task(self.task)
        task = self.learns
        if self.class_weights is not None and not task.weighs_classes:
            raise UserError(
                f"class-weights is {self.class_weights!r}, but the loss of the task {self.task!r} weighs no classes: "
                "leave it out."
            )
        if self.decoder not in DECODERS:
            raise UserError(f"unknown decoder {self.decoder!r}: choose one of {', '.join(DECODERS)}.")
        if self.dense and not side_spec(self.side).tail:
            raise UserError(
                f"side is {self.side!r}, which gives one vector an image, and the task {self.task!r} needs tokens of "
                f"patches: choose another."
            )
        side_spec(self.side)  # refuses an unknown one
        if self.start not in STARTS:
            raise UserError(f"unknown start {self.start!r}: choose one of {', '.join(STARTS)}.")
        if self.head not in HEADS:
            raise UserError(f"unknown head {self.head!r}: choose one of {', '.join(HEADS)}.")
        require_layers(self.layers)
        require_counts(limit=self.limit)
        for name, kind, low, high in BOUNDS:
            value, shown = getattr(self, name), name.removeprefix("peak_").removeprefix("chosen_").replace("_", "-")
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UserError(f"{shown} is {value!r}: it must be a {'whole ' if kind is int else ''}number.")
            if not low <= value <= high:
                raise UserError(f"{shown} is {value}: it must lie between {low} and {high}.")
        if self.val_fraction == 1:
            raise UserError(f"val-fraction is {self.val_fraction}: it must be below 1: some samples must be left.")

    def _settle_method(self) -> None:
        """Set what follows from the method.

        Raises:
            UserError: for an unknown one, and for options that it leaves nothing to do.
        """
        named = None if self.method is None else NAMED_SIDES.get(self.method)
        if self.grad_checkpointing and (self.method is None or named is not None):
            raise UserError(
                "grad-checkpointing is for what trains inside the backbone: leave it out, or name a --method."
            )
        if self.method is None:
            return
        side = named or "linear"
        if self.side not in (DEFAULT, side):
            raise UserError(f"side is {self.side!r} and method is {self.method!r}: leave one of them out.")
        settled: dict[str, Any] = {"side": side, "method": None}
        if named is None:
            parse_method(self.method, self.rank)  # refuses an unknown one
            for name, values in IDLE.items():
                if getattr(self, name) not in values:
                    raise idle(name, getattr(self, name), self.method)
            settled |= {"method": self.method, "head": LAST}
        for name, value in settled.items():
            object.__setattr__(self, name, value)


def of_recipe(name: str) -> dict[str, Any]:
    """Give the options that a recipe sets.

    Raises:
        UserError: for an unknown one.
    """
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}: choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]

"""What stage two trains: side network and classifier around the frozen tail."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from losa_cache.points import ALL_LAYERS
from losa_cache.sidenet.blend import Blend
from losa_cache.sidenet.network import Sizes
from losa_cache.sidenet.operand import Block, dense
from losa_cache.sidenet.pooled import Pooling, pooling_of
from losa_cache.sidenet.reader import Reader
from losa_cache.sidenet.spec import load_network, side_spec
from losa_cache.sidenet.tail import FrozenTail


class Adapter(nn.Module):
    """Block outputs to logits: side network, frozen tail, classifier.

    A side network that refines y_0 starts as exactly the linear probe (``side="linear"``), since its updates start at
    zero and the classifier is drawn first. One without a tail refines nothing: what it makes of the blocks is the
    feature vector, in place of the frozen tail's.

    Args:
        side: name of the side network (``losa_cache.sidenet.spec.SIDES``).
        depth: number k of the side network's inputs; 1 for those that look at the last layer only.
        tokens: tokens n of a block output.
        width: channels d of a block output.
        rank: inner width r; not used by side networks without one.
        classes: outputs of the classifier: the number of classes, or what another task than classification has.
        tail: the backbone's frozen tail.
        seed: of the random start, and of the noise in training.
        grid: frames, rows and columns of a video's tokens, behind any prefix tokens: a LoSA mixes space and time apart.
        head: ``last``: the classifier reads what the frozen tail makes of y_k, as in the paper. ``all`` (*not from the
            paper*): the side network reads layer-normed blocks and y_0, without the norms' parameters; its classifier
            attends to the pooled rows (:class:`~losa_cache.sidenet.pooled.Pooling`) of all blocks and of y_k
            (:class:`~losa_cache.sidenet.reader.Reader`), and the logits of a probe on the pooled rows of all blocks are
            added. The tail is not used.
        points: blocks that are read, y_0 among them, for ``head="all"``.
    """

    def __init__(
        self,
        *,
        side: str,
        depth: int,
        tokens: int,
        width: int,
        rank: int,
        classes: int,
        tail: FrozenTail,
        seed: int = 0,
        grid: Sequence[int] | None = None,
        head: str = "last",
        points: int = 1,
    ) -> None:
        super().__init__()
        self.name, self.spec = side, side_spec(side)
        self.probe: nn.Linear | None = None
        self.reader: Reader | None = None
        self.blend: Blend | None = None
        self.pooling = pooling_of(tail.config) if head == ALL_LAYERS else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.pooling is not None:
                self.reader = Reader(points=points, rows=self.pooling.rows, width=width)
            self.classifier = nn.Linear(width if self.reader is None else self.reader.features, classes)
            nn.init.trunc_normal_(self.classifier.weight, std=0.01)
            nn.init.zeros_(self.classifier.bias)
            self.side = load_network(side).build(Sizes(depth, tokens, width, rank, grid, tail.config, seed))
        if self.pooling is not None:
            features = points * self.pooling.rows * width
            self.probe = nn.utils.skip_init(nn.Linear, features, classes).requires_grad_(False)
            nn.init.zeros_(self.probe.weight)
            nn.init.zeros_(self.probe.bias)
        self.tail, self.tokens, self.seed = tail, tokens, seed

    def forward(self, blocks: Sequence[Block]) -> Tensor:
        """Logits ``(batch, classes)`` from the side network's inputs ``(batch, tokens, width)``, y_0 the last."""
        return self.outputs(*self.refined(blocks))

    @property
    def reads_tail(self) -> bool:
        """Whether the frozen tail lies between the side network and the classifier."""
        return self.spec.tail and self.pooling is None

    def refined(self, blocks: Sequence[Block]) -> tuple[Tensor, Tensor | None]:
        """Run the side network.

        Args:
            blocks: as of :meth:`forward`.

        Returns:
            what :meth:`outputs` takes: the rows of y_k that are read, ``(batch, m, width)``, and ``None``. With a
            classifier over all layers, what is added to the rows of y_0, and the rows of all blocks. Of a network
            without a tail its feature vector, ``(batch, width)``, and ``None``.
        """
        if not self.spec.tail:
            return self.side(blocks), None
        if self.pooling is not None:
            return refine(self.side, blocks, self.pooling, self.tokens)
        return self.side(blocks, self.tail.readout(self.tokens)), None

    def outputs(self, refined: Tensor, rows: Tensor | None = None) -> Tensor:
        """Compute logits ``(batch, classes)`` from what :meth:`refined` gives."""
        if rows is not None:
            own, probe = self._heads(refined, rows)
            if probe is None:
                return own
            return own + probe if self.blend is None else self.blend.blended(own, probe)
        return self.classifier(self.features(refined))

    def features(self, refined: Tensor, rows: Tensor | None = None) -> Tensor:
        """Pool y_k to a vector a sample, from what :meth:`refined` gives.

        It is the feature vector that the classifier reads, ``(batch, width)``; with a classifier over all layers the
        refined rows of the last block, one after the other, ``(batch, m width)``.
        """
        if rows is not None:
            return (rows[:, -refined.shape[1] :] + refined).flatten(1)
        return self.tail.from_rows(refined) if self.reads_tail else refined

    @property
    def feature_length(self) -> int:
        """Length of the vector that :meth:`features` gives."""
        width = int(self.tail.config["width"])
        return self.classifier.in_features if self.pooling is None else self.pooling.rows * width

    def begin(self, dropout: float) -> None:
        """Make ready for training a classifier over all layers: what :meth:`fold` ends."""
        if self.reader is not None:
            self.blend = Blend(seed=self.seed, dropout=dropout, device=self.classifier.weight.device)

    def both(self, blocks: Sequence[Block]) -> tuple[Tensor, Tensor | None]:
        """Logits ``(batch, classes)`` of the side network's classifier and, but for training steps, of the probe."""
        update, rows = self.refined(blocks)
        assert rows is not None
        return self._heads(update, rows)

    def _heads(self, update: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        assert self.reader is not None and self.probe is not None
        if self.training and self.blend is not None:
            update = self.blend.dropped(update)
        return self.classifier(self.reader(rows, update)), None if self.training else probed(self.probe, rows)

    @torch.no_grad()
    def fold(self) -> None:
        """Put the shares into the weights: the logits stay what they are in evaluation."""
        if self.blend is None or self.probe is None:
            return
        a, b = self.blend.share
        self.classifier.weight.mul_(b)
        self.classifier.bias.mul_(b)
        self.probe.weight.mul_(a)
        self.probe.bias.mul_(a)
        self.blend = None

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name: an adapter file holds these and no frozen ones."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("tail.")}

    def parameter_counts(self) -> dict[str, int]:
        """Trained parameters of the side network (what the paper's tables count) and of the classifier.

        A probe on all layers, and what the classifier reads with, are counted with the classifier.
        """
        heads = [head for head in (self.classifier, self.reader, self.probe) if head is not None]
        side = sum(p.numel() for p in self.side.parameters())
        return {"side": side, "classifier": sum(p.numel() for head in heads for p in head.parameters())}


def refine(side: nn.Module, blocks: Sequence[Block], pooling: Pooling, tokens: int) -> tuple[Tensor, Tensor]:
    """Run a side network on layer-normed blocks.

    Args:
        side: a network or a stack of them, on blocks and a readout.
        blocks: ``(batch, tokens, width)``, y_0 the last.
        pooling: which rows are read.
        tokens: n.

    Returns:
        what it adds to the rows of y_0, ``(..., batch, m, width)``; and the rows of all k blocks, ``(batch, k m,
        width)``.
    """
    normed, rows = zip(*map(pooling.read, blocks), strict=True)
    (start,) = dense(normed[-1:])
    readout = pooling.readout(tokens)
    return side([*normed[:-1], start], readout) - readout.rows(start), torch.cat(rows, 1)


def probed(probe: nn.Linear, rows: Tensor) -> Tensor:
    """Compute a probe's logits from the rows of all blocks, never in half precision: it was fitted in float64."""
    with torch.autocast(rows.device.type, enabled=False):
        return probe(rows.flatten(1).to(probe.weight.dtype))

"""The classifier over all layers against its definition, written down plainly in float64."""

import pytest
import torch
from torch.nn import functional as F

from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.blend import Blend
from losa_cache.sidenet.pooled import Pooling
from losa_cache.sidenet.stack import AdapterStack
from tests.sidenet.test_fast import tail_of

BATCH, TOKENS, WIDTH, DEPTH, CLASSES = 5, 7, 8, 4, 3
SHARE = torch.tensor([0.7, 0.4])


def blocks_of(seed=0, points=DEPTH):
    generator = torch.Generator().manual_seed(seed)
    return [3 + 2 * torch.randn(BATCH, TOKENS, WIDTH, generator=generator).double() for _ in range(points)]


def adapter_of(prefix, *, side="losa", rank=3, dropout=0.0, points=DEPTH):
    adapter = Adapter(
        side=side, depth=DEPTH, tokens=TOKENS, width=WIDTH, rank=rank, classes=CLASSES,
        tail=tail_of("token", WIDTH, prefix=prefix), head="all", points=points,
    ).double()  # fmt: skip
    adapter.begin(dropout)
    adapter.double()
    torch.manual_seed(rank)
    with torch.no_grad():
        for p in (*adapter.side.parameters(), *adapter.probe.parameters(), *adapter.reader.parameters()):
            p.add_(0.3 * torch.randn_like(p))
        adapter.blend.share.copy_(SHARE)
    images = torch.randn(50, points * adapter.pooling.rows, WIDTH, generator=torch.Generator().manual_seed(0))
    adapter.reader.standardise(3 + 2 * images)
    return adapter


def plain(adapter, blocks, prefix):
    """Logits of the side network's classifier and of the probe."""
    normed = [F.layer_norm(block, (WIDTH,), eps=1e-6) for block in blocks]

    def rows(tokens):
        patches = tokens[:, prefix:].mean(1)
        first = tokens[:, : adapter.pooling.classes].mean(1)
        return patches[:, None] if prefix == 0 else torch.stack([first, patches], 1)

    frozen, refined = [rows(block) for block in normed], rows(adapter.side.plain(normed))
    probe = torch.cat([row.flatten(1) for row in frozen], 1)
    return adapter.classifier(attended(adapter.reader, [*frozen, refined])), adapter.probe(probe)


def attended(reader, rows):
    """Head by head: the scores of all rows, their softmax, the mean, and its values."""
    rows = (torch.cat(rows, 1) - reader.center) * reader.scale
    means = [((rows @ query / WIDTH**0.5).softmax(1)[:, :, None] * rows).sum(1) for query in reader.queries]
    found = torch.cat([mean @ values.mT for mean, values in zip(means, reader.values, strict=True)], 1)
    return F.layer_norm(found, found.shape[1:], eps=1e-6)


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize(("side", "points"), [("losa", DEPTH), ("mlp", DEPTH), ("losa", DEPTH + 1)])
def test_logits_and_gradients_are_those_of_the_definition(side, points, prefix):
    adapter, blocks = adapter_of(prefix, side=side, points=points), blocks_of(points=points)
    own, probe = plain(adapter, blocks, prefix)
    expected = torch.autograd.grad(own.square().sum(), [p for p in adapter.parameters() if p.requires_grad])
    trained = adapter.train()(blocks)
    found = torch.autograd.grad(trained.square().sum(), [p for p in adapter.parameters() if p.requires_grad])
    torch.testing.assert_close(trained, own, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    evaluated = adapter.eval()(blocks)
    torch.testing.assert_close(evaluated, SHARE[0] * probe + SHARE[1] * own, rtol=1e-7, atol=1e-7)
    adapter.fold()
    torch.testing.assert_close(adapter(blocks), evaluated, rtol=1e-10, atol=1e-10)
    assert not [name for name in adapter.trained_state() if name.startswith("blend")]


def test_dropout_takes_values_of_the_update_and_no_others():
    adapter, blocks = adapter_of(1), blocks_of()
    start = Pooling(1, 1)(blocks[-1])
    kept = adapter.side.plain([F.layer_norm(b, (WIDTH,), eps=1e-6) for b in blocks])
    update = torch.stack([kept[:, 0], kept[:, 1:].mean(1)], 1) - start
    blend = Blend(seed=0, dropout=0.5, device=torch.device("cpu"))
    steps = [blend.dropped(update) for _ in range(2)]
    for value in steps:
        lost = value == 0
        assert 0.25 < lost.double().mean() < 0.75
        torch.testing.assert_close(value[~lost], 2 * update[~lost], rtol=1e-6, atol=1e-6)
    assert not torch.equal(*steps)
    adapter.begin(0.5)
    trained = [adapter.double().train()(blocks) for _ in range(2)]
    rows = torch.cat([Pooling(1, 1)(block) for block in blocks], 1)
    for value, logits in zip(steps, trained, strict=True):
        read = attended(adapter.reader, [rows, start + value])
        torch.testing.assert_close(logits, adapter.classifier(read), rtol=1e-7, atol=1e-7)


def test_adapters_stacked_give_what_each_gives_alone():
    ranks, dropouts = [2, 3], [0.0, 0.4]
    alone = [adapter_of(1, rank=rank, dropout=dropout) for rank, dropout in zip(ranks, dropouts, strict=True)]
    for other in alone[1:]:  # one probe for all
        other.probe.load_state_dict(alone[0].probe.state_dict())
    stack = AdapterStack(alone).double()
    stack.blend.share.copy_(torch.tensor([[0.7, 0.4], [0.1, 0.9]]))
    alone[1].blend.share.copy_(torch.tensor([0.1, 0.9]))
    for train in (True, False, True):
        stack.train(train)
        together = stack(blocks_of())
        for logits, adapter in zip(together, alone, strict=True):
            torch.testing.assert_close(logits, adapter.train(train)(blocks_of()), rtol=1e-9, atol=1e-9)
    other = [adapter_of(1, rank=rank, dropout=dropout) for rank, dropout in zip(ranks, dropouts, strict=True)]
    stack.unstack(other)
    for mine, theirs in zip(other, alone, strict=True):
        torch.testing.assert_close(mine.eval()(blocks_of()), theirs.eval()(blocks_of()), rtol=1e-9, atol=1e-9)
    stack.keep([1])
    torch.testing.assert_close(stack.eval()(blocks_of())[0], alone[1].eval()(blocks_of()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("classes", "prefix"), [(0, 0), (1, 1), (1, 5), (2, 3)])
def test_what_is_read_of_normed_tokens_are_their_pooled_rows_and_its_gradient_is_the_transpose(classes, prefix):
    pooling, block = Pooling(classes, prefix), blocks_of()[0]
    normed, rows = pooling.normed(block)
    torch.testing.assert_close(normed, F.layer_norm(block, (WIDTH,), eps=1e-6), rtol=1e-12, atol=1e-12)
    assert torch.equal(rows, pooling(block))
    readout = pooling.readout(TOKENS)
    torch.testing.assert_close(readout.rows(normed), rows, rtol=1e-12, atol=1e-12)
    wider, x = readout.filled(TOKENS + 2), torch.randn(3, TOKENS + 2).double()
    g = torch.randn(3, pooling.rows).double()
    assert torch.allclose((wider.select(x) * g).sum(), (x * wider.spread(g)).sum())
    assert not wider.spread(g)[:, TOKENS:].any()

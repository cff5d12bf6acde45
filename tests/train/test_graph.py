"""Training steps that are recorded and replayed, against the same steps written out."""

import weakref
from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

import losa_cache as lc
from losa_cache.factors import Codes, Product
from losa_cache.machine.capture import without_collections
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.operand import Gathered
from losa_cache.sidenet.stack import AdapterStack
from losa_cache.tasks.classification import TASK
from losa_cache.train import loop
from losa_cache.train.batch import Batch
from losa_cache.train.config import TrainConfig
from losa_cache.train.graph import MOST, Replayed, map_tensors, recorder_for
from losa_cache.train.loop import make_optimizer
from losa_cache.train.stacked_adamw import StackedAdamW
from losa_cache.train.step import AdapterStep, StackStep
from tests.sidenet.test_fast import tail_of
from tests.tape import TapeRecorder

DEPTH, TOKENS, WIDTH, CLASSES = 4, 6, 8, 3
SIZES = [7, 7, 7, 3, 7, 7, 3, 7, 7]  # two epochs, and their smaller last batches
RATES = [0.01, 0.02, 0.03, 0.02, 0.01, 0.005, 0.02, 0.01, 0.03]
CONFIG = TrainConfig(weight_decay=0.1)


def adapter(seed: int = 0, rank: int = 2) -> Adapter:
    torch.manual_seed(0)
    tail = tail_of("avg", WIDTH, 1)
    torch.manual_seed(seed)
    made = Adapter(
        side="losa", depth=DEPTH, tokens=TOKENS, width=WIDTH, rank=rank, classes=CLASSES, tail=tail,
        seed=seed,
    )  # fmt: skip
    with torch.no_grad():
        for layer in made.side.layers:
            torch.nn.init.normal_(layer.up.weight, std=0.3)
    return made


def values_of(form, size, seeded):
    """Random block outputs of a batch, y_0 the last, in fresh tensors."""

    def normal(*shape):
        return torch.randn(*shape, generator=seeded)

    def block():
        if form == "codes":
            codes = torch.randint(-127, 128, (size, TOKENS, WIDTH), generator=seeded, dtype=torch.int8)
            return Codes(codes, normal(size, TOKENS).abs() / 100, normal(WIDTH).abs(), dtype=torch.float32)
        if form == "product":
            shapes = ((3, size, TOKENS - 1), (3, WIDTH), (WIDTH,), (size, 1, WIDTH))
            return Product(*(normal(*shape) for shape in shapes), dtype=torch.float32)
        return normal(size, TOKENS, WIDTH)

    return [*(block() for _ in range(DEPTH - 1)), normal(size, TOKENS, WIDTH)]


def batches(form, sizes=SIZES):
    """Batches whose tensors never stay where they were."""
    seeded = torch.Generator().manual_seed(1)
    for size in sizes:
        labels = torch.randint(0, CLASSES, (size,), generator=seeded)
        yield Batch(values_of(form, size, seeded), labels, [""] * size)


class Slots:
    """The same batches at the addresses of a few buffers, which are taken in turn."""

    def __init__(self, count: int) -> None:
        self._slots, self._turn = [{} for _ in range(count)], 0

    def settle(self, batch: Batch) -> Batch:
        slot = self._slots[self._turn % len(self._slots)]
        self._turn += 1
        if len(batch.labels) not in slot:
            slot[len(batch.labels)] = [map_tensors(block, torch.empty_like) for block in batch.blocks]
        settled = slot[len(batch.labels)]
        for own, block in zip(settled, batch.blocks, strict=True):
            parts = [vars(own), vars(block)] if not isinstance(own, torch.Tensor) else [{"": own}, {"": block}]
            for name, value in parts[0].items():
                if isinstance(value, torch.Tensor):
                    value.copy_(parts[1][name])
        return Batch(settled, batch.labels, batch.ids, fixed=True)


class Rows:
    """The same batches as rows of what lies on the device."""

    def __init__(self, form, sizes, device="cpu") -> None:
        all_of_them = [batch.blocks for batch in batches(form, sizes)]
        self._kept = [torch.cat(parts).to(device) for parts in zip(*all_of_them, strict=True)]
        self._rows, self._at = torch.empty(max(sizes), dtype=torch.int64, device=device), 0

    def settle(self, batch: Batch) -> Batch:
        size = len(batch.labels)
        self._rows[:size] = torch.arange(self._at, self._at + size)
        self._at += size
        return Batch([Gathered(kept, self._rows[:size]) for kept in self._kept], batch.labels, batch.ids, fixed=True)


def changed_by(parameters, *others):
    """What a step writes: parameters, the optimiser's state and sums."""
    return lambda: [*parameters, *(tensor for tensors in others for tensor in tensors())]


def taped(model, optimizer, sums):
    """A recorder for a step that is made after it."""

    def moments():
        if isinstance(optimizer, StackedAdamW):
            return [value for value in vars(optimizer).values() if isinstance(value, torch.Tensor)]
        return [value for state in optimizer.state.values() for value in state.values()]

    return TapeRecorder(changed_by(list(model.parameters()), moments, lambda: [s.loss for s in sums]))


def step_of(model, optimizer, *, recorded=True):
    sums = []
    recorder = taped(model, optimizer, sums) if recorded else None
    step = AdapterStep(
        model, optimizer, task=TASK, clip_grad=0.5, options={"label_smoothing": 0.1}, autocast=None, recorder=recorder
    )
    sums.append(step)
    return step, recorder


def written_out(model, given):
    """Train as a page of torch's documentation does."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, rest = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": CONFIG.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, fused=True)
    total = torch.zeros((), dtype=torch.float64)
    for batch, rate in given:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch.blocks), batch.labels, label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*matrices, *rest], 0.5)
        optimizer.step()
        total += loss.detach().double() * len(batch.labels)
    return optimizer, total


def same(model, other):
    return all(map(torch.equal, model.parameters(), other.parameters()))


@pytest.mark.parametrize(
    ("form", "place", "warmed", "recorded"),
    [
        ("values", None, 1, 1),  # copied
        ("codes", None, 1, 1),
        ("product", None, 1, 1),
        ("values", Slots(1), 1, 1),
        ("values", Slots(2), 2, 2),
        ("codes", Slots(2), 2, 2),
        ("values", Rows("values", SIZES), 1, 1),
    ],
)
def test_replayed_steps_are_the_steps_bit_for_bit(form, place, warmed, recorded):
    ours, theirs = adapter(), adapter()
    _, total = written_out(theirs, zip(batches(form), RATES, strict=True))
    step, recorder = step_of(ours, make_optimizer(ours, CONFIG))
    for batch, rate in zip(batches(form), RATES, strict=True):
        step.rates.fill_(rate)
        step(batch if place is None else place.settle(batch))
    assert not same(ours, adapter())
    assert same(ours, theirs)
    assert torch.equal(step.loss, total)
    assert (recorder.warmed, recorder.recorded) == (warmed, recorded)
    assert recorder.replayed == SIZES.count(7) - warmed
    assert step.why_eager is None


def test_a_checkpoint_of_replayed_steps_is_one_of_eager_ones_and_goes_on_either_way():
    whole, first = adapter(), adapter()
    there, _ = written_out(whole, zip(batches("values"), RATES, strict=True))
    given = list(zip(batches("values"), RATES, strict=True))
    optimizer = make_optimizer(first, CONFIG)
    step, _ = step_of(first, optimizer)
    for batch, rate in given[:5]:
        for group in optimizer.param_groups:
            group["lr"] = rate
        step.rates.fill_(rate)
        step(batch)
    saved = deepcopy((first.state_dict(), optimizer.state_dict()))
    groups = saved[1]["param_groups"]
    assert [(type(g["lr"]), g["capturable"]) for g in groups] == [(float, False)] * 2
    assert groups[0].keys() == there.state_dict()["param_groups"][0].keys()
    for recorded in (False, True):
        model = adapter(seed=5)
        optimizer = make_optimizer(model, CONFIG)
        step, _ = step_of(model, optimizer, recorded=recorded)
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(deepcopy(saved[1]))
        for batch, rate in given[5:]:
            step.rates.fill_(rate)
            step(batch)
        assert same(model, whole)


def stack_of(seeds, **options):
    stack = AdapterStack([adapter(seed, rank=2 + seed) for seed in seeds])
    decays, clips = [0.0, 0.1, 0.01], [1.0, 0.1, 0.05]
    optimizer = StackedAdamW(
        stack.decayed(), weight_decay=[decays[seed] for seed in seeds], clip_grad=[clips[seed] for seed in seeds]
    )
    sums = []
    recorder = taped(stack, optimizer, sums) if options.get("recorded", True) else None
    smoothing = [0.1 * seed for seed in seeds]
    sums.append(
        StackStep(stack, optimizer, task=TASK, options={"label_smoothing": smoothing}, autocast=None, recorder=recorder)
    )
    return stack, optimizer, sums[0], recorder


def take(step, given, rates):
    for batch, rate in given:
        step.rates.copy_(torch.tensor(rates) * rate)
        step(batch)


def test_replayed_steps_of_a_stack_are_its_steps_and_trials_may_go():
    given = list(zip(batches("values"), RATES, strict=True))
    (ours, optimizer, step, recorder), (theirs, their_optimizer, their_step, _) = (
        stack_of([0, 1, 2], recorded=recorded) for recorded in (True, False)
    )
    for own in (step, their_step):
        take(own, given[:5], [1.0, 2.0, 0.5])
    assert recorder.replayed == 3
    assert same(ours, theirs)
    for stack, optimiser, own in ((ours, optimizer, step), (theirs, their_optimizer, their_step)):
        stack.keep([0, 2])
        optimiser.keep([0, 2])
        own.keep([0, 2])
        take(own, given[5:], [1.0, 0.5])
    assert recorder.replayed == 3 + 2
    assert same(ours, theirs)
    assert torch.equal(step.loss, their_step.loss)
    alone, _, alone_step, _ = stack_of([2], recorded=False)
    take(alone_step, given, [0.5])
    rest, mine = alone.side.channel.down[0], ours.side.channel.down[1]
    torch.testing.assert_close(mine, rest, rtol=1e-4, atol=1e-5)


def test_a_stack_goes_on_from_its_state():
    given = list(zip(batches("values"), RATES, strict=True))
    whole, _, step, _ = stack_of([0, 1])
    take(step, given, [1.0, 2.0])
    first, optimizer, step, _ = stack_of([0, 1])
    take(step, given[:5], [1.0, 2.0])
    saved = deepcopy((first.trained_state(), optimizer.state()))
    shapes = [mean.shape for mean, _ in saved[1]["moments"]]
    assert (saved[1]["steps"], shapes) == (5, [p.shape for p, _ in first.decayed()])
    for recorded in (False, True):
        stack, optimizer, step, _ = stack_of([0, 1], recorded=recorded)
        take(step, given[:4], [3.0, 3.0])  # a recording of what is then replaced
        stack.load_trained(deepcopy(saved[0]))
        optimizer.load(saved[1])
        step.forget()
        take(step, given[5:], [1.0, 2.0])
        assert same(stack, whole)


def test_a_step_that_cannot_be_recorded_is_taken_eagerly_and_says_why(caplog):
    caplog.set_level("INFO", logger="losa_cache")
    ours, theirs = adapter(), adapter()
    written_out(theirs, zip(batches("values"), RATES, strict=True))
    ours.classifier.register_forward_hook(lambda module, given, found: found * (1 if found.sum().item() else 2))
    step, recorder = step_of(ours, make_optimizer(ours, CONFIG))
    for batch, rate in zip(batches("values"), RATES, strict=True):
        step.rates.fill_(rate)
        step(batch)
    assert same(ours, theirs)
    assert (recorder.warmed, recorder.recorded, recorder.replayed) == (1, 0, 0)
    assert step.why_eager == "Unrecordable: a number is read from a tensor"
    assert [r.message for r in caplog.records] == [
        f"The training step is not replayed as a CUDA graph ({step.why_eager})."
    ]


def test_batches_at_ever_new_places_are_worked_on_eagerly():
    done = []

    def work(blocks, labels):
        done.append(blocks[0][0, 0, 0].clone())

    recorder = TapeRecorder(list)
    replayed = Replayed("it", recorder)
    held = [torch.full((2, 3, 4), float(at)) for at in range(MOST + 3)]
    for block in held:
        replayed(work, Batch([block], torch.zeros(2), [""] * 2, fixed=True))
    assert [int(value) for value in done] == list(range(MOST + 3))
    assert recorder.warmed == MOST
    assert "more than 8 places" in replayed.why_eager


def test_a_recording_makes_room_for_a_batch_that_does_not_fit_beside_it():
    total, refused = torch.zeros(()), [True]

    def work(blocks, labels):
        if len(labels) == 1 and refused:
            refused.clear()
            raise torch.OutOfMemoryError
        total.add_(blocks[0].sum())

    recorder = TapeRecorder(lambda: [total])
    replayed = Replayed("it", recorder)
    for size in (2, 2, 2, 1, 2):
        replayed(work, Batch([torch.ones(size, 1, 1)], torch.zeros(size), [""] * size))
    assert total == 9
    assert recorder.replayed == 2
    assert "no memory" in replayed.why_eager
    replayed = Replayed("it", None)
    refused.append(True)
    with pytest.raises(torch.OutOfMemoryError):
        replayed(work, Batch([torch.ones(1, 1, 1)], torch.zeros(1), [""]))


def test_what_a_run_recorded_goes_with_it_and_waits_for_no_collection(tiny_cache, tmp_path, monkeypatch):
    """A recording holds block outputs on the device; and a CUDA graph that goes at any later time may do so during a
    capture, which then fails.
    """
    made = []

    def recorder(device):
        own = TapeRecorder(list)
        made.append(weakref.ref(own))
        return own

    monkeypatch.setattr(loop, "recorder_for", recorder)
    with without_collections():
        run = lc.train(
            tiny_cache, out=tmp_path / "run", residency="memory", rank=2, epochs=2, batch_size=8, val_fraction=0
        )
        assert run.metrics["epoch"] == 2
        assert [own() for own in made] == [None]


def test_a_step_that_could_not_be_recorded_goes_as_well():
    class Refuses(TapeRecorder):
        def record(self, work):
            raise RuntimeError

    recorder = Refuses(list)
    replayed = Replayed("it", recorder)
    with without_collections():
        for _ in range(2):
            replayed(lambda blocks, labels: None, Batch([torch.ones(2, 3, 4)], torch.zeros(2), [""] * 2))
        assert replayed.why_eager == "RuntimeError: "
        gone = weakref.ref(recorder)
        del replayed, recorder
        assert gone() is None


def test_nothing_is_recorded_on_a_cpu():
    assert recorder_for(torch.device("cpu")) is None
    step, _ = step_of(*((model := adapter()), make_optimizer(model, CONFIG)), recorded=False)
    assert step.why_eager is not None

"""What the registry says of every side network, against what the network does. A new one is held to it by itself."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from losa_cache.errors import UserError
from losa_cache.factors import Codes
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.spec import FOLDER, SIDES, load_network, read_spec
from tests.sidenet.test_fast import codes, tail_of

DEPTH, TOKENS, WIDTH = 3, 5, 8
TAILS = {pool: tail_of(pool, WIDTH, prefix=1) for pool in ("token", "avg")}


def new(side, rank=2, tail="token"):
    depth = 1 if SIDES[side].last_layer else DEPTH
    sizes = {"depth": depth, "tokens": TOKENS, "width": WIDTH, "rank": rank, "classes": 3}
    return Adapter(side=side, tail=TAILS[tail], **sizes).double().eval()


def away_from_the_start(side, tail="token"):
    torch.manual_seed(1)
    adapter = new(side, tail=tail)
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5)
    return adapter


def some_blocks():
    torch.manual_seed(2)
    return [torch.randn(6, TOKENS, WIDTH, dtype=torch.float64) for _ in range(DEPTH)]


@pytest.mark.parametrize("side", SIDES)
def test_the_facts_of_a_file_are_read_as_python_reads_them(side):
    assert read_spec(FOLDER / f"{side}.py") == load_network(side).SPEC == SIDES[side]
    assert hasattr(load_network(side), "stack") == SIDES[side].stacks


def test_every_file_is_known_and_no_other_name(tmp_path):
    assert sorted(SIDES) == sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
    with pytest.raises(UserError, match=r"unknown side network 'lora': choose one of .*losa.*linear"):
        load_network("lora")
    (tmp_path / "empty.py").write_text("NAME = 'empty'\n")
    with pytest.raises(ValueError, match="has no SPEC"):
        read_spec(tmp_path / "empty.py")


def test_names_and_facts_need_no_torch():
    code = "import sys; sys.modules['torch'] = None; from losa_cache.train.config import TrainConfig; "
    code += "print(TrainConfig(side='linear').peak_lr, TrainConfig().peak_lr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0.01 0.001\n"


@pytest.mark.parametrize("side", [side for side in SIDES if SIDES[side].start])
def test_what_refines_the_output_starts_as_the_linear_probe(side):
    assert torch.equal(new(side)(some_blocks()), new("linear")(some_blocks()))


@pytest.mark.parametrize("side", SIDES)
def test_rank_tail_and_layers_are_as_the_spec_says(side):
    spec, blocks = SIDES[side], some_blocks()
    shapes = [[value.shape for value in new(side, rank).trained_state().values()] for rank in (2, 3)]
    assert (shapes[0] != shapes[1]) == spec.rank
    adapter = away_from_the_start(side)
    assert adapter.side(blocks[-1:] if spec.last_layer else blocks).ndim == (3 if spec.tail else 2)
    others = [torch.randn_like(block) for block in blocks[:-1]]
    assert torch.equal(adapter(blocks), adapter([*others, blocks[-1]])) == spec.last_layer


@pytest.mark.parametrize("side", SIDES)
def test_samples_see_each_other_in_training_where_the_spec_says_so(side):
    adapter, blocks = away_from_the_start(side).train(), some_blocks()
    changed = [torch.cat([block[:1], torch.randn_like(block[1:])]) for block in blocks]
    state = {name: value.clone() for name, value in adapter.state_dict().items()}
    first = adapter(blocks)[0]
    adapter.load_state_dict(state)
    together = torch.allclose(first, adapter(changed)[0], rtol=1e-9, atol=1e-12)
    assert together != SIDES[side].mixes_samples


def same_for_other_patches(side):
    """Patches come in pairs whose layer-normed mean is zero, whatever they are: pooled rows cannot tell them apart."""
    adapter = away_from_the_start(side, tail="avg")
    torch.manual_seed(3)
    first = [torch.randn(6, 1, WIDTH, dtype=torch.float64) for _ in range(DEPTH)]
    found = []
    for _ in range(2):
        halves = [torch.randn(6, TOKENS // 2, WIDTH, dtype=torch.float64) for _ in range(DEPTH)]
        found.append(adapter([torch.cat([own, x, -x], 1) for own, x in zip(first, halves, strict=True)]))
    return torch.allclose(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("side", [side for side in SIDES if SIDES[side].pooled_rows])
def test_pooled_rows_are_enough_where_the_spec_says_so(side):
    assert same_for_other_patches(side)
    assert not any(map(same_for_other_patches, ("losa", "mlp", "ladder", "attentive")))


@pytest.mark.parametrize("side", [side for side in SIDES if not SIDES[side].last_layer])
def test_codes_are_decoded_unless_the_spec_says_that_they_fold(side, monkeypatch):
    decoded, plain = [], Codes.dense
    monkeypatch.setattr(Codes, "dense", lambda self: decoded.append(1) or plain(self))
    away_from_the_start(side)([*(codes(6, TOKENS, WIDTH) for _ in range(DEPTH - 1)), some_blocks()[-1]])
    assert (not decoded) == SIDES[side].folds_codes

"""Valid checksums in the wrong place: what is read is held to its place and its cache, by every reader, and mended.

Every attack leaves all checksums right. That checksums alone do not see it is shown by taking the receipts away.
"""

import json
import logging
import os
import shutil
from itertools import product

import pytest
import torch

import losa_cache as lc
from losa_cache.cache import receipt
from losa_cache.cache.stage import stage_cache
from losa_cache.cache.storage import receipts_of
from losa_cache.cache.store import open_cache
from losa_cache.cache.stores.remote import RemotePath
from losa_cache.errors import UserError
from losa_cache.extract.verify import verify_cache
from tests.cache.attacks import (
    FILES,
    KINDS,
    ROWS,
    SHARDS,
    SKIPPED,
    edit,
    exchange,
    exchange_shards,
    float_labels,
    make,
    receipts,
    require_same,
    shard,
    take,
    use,
)
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents
from tests.servers import BUCKET, http_server, upload


@pytest.fixture(scope="module", params=KINDS)
def every(request, tmp_path_factory):
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make("int8", tmp_path_factory.mktemp("pair"))


def train(path, out, **options):
    return lc.train(path, epochs=1, val_fraction=0, batch_size=4, device="cpu", out=out, **options)


QUICK = "compressed", "two shards exchanged"


@pytest.mark.parametrize(
    ("every", "attack"),
    [
        pytest.param(kind, attack, marks=[] if kind == "int8" or (kind, attack) == QUICK else pytest.mark.slow)
        for kind, attack in product(KINDS, SHARDS)
    ],
    indirect=["every"],
)
def test_a_shard_in_the_wrong_place_is_an_error_and_extract_mends_it(every, attack, tmp_path):
    own, other = every.copy(tmp_path)
    change, shards = SHARDS[attack]
    change(own, other)
    with pytest.raises(UserError, match=r"cannot be read from shard [12] of '.*own\.zarr' .*verify --repair mends it"):
        use(own)
    with pytest.raises(UserError, match=r"shard [12] of '.*own\.zarr' is damaged"):
        stage_cache(open_cache(own), tmp_path / "near")
    shutil.copytree(own, tmp_path / "alone.zarr")
    alone = use(tmp_path / "alone.zarr")  # checksums do not see it
    assert not all(torch.equal(a, b) for a, b in zip(alone[3], use(every.own)[3], strict=True))
    layout = open_cache(every.own).layout
    assert every.again(own) == sum(len(layout.rows(number)) for number in shards)
    assert (contents(own), contents(receipts(own))) == (contents(every.own), contents(receipts(every.own)))


@pytest.mark.parametrize("attack", ROWS)
def test_rows_in_the_wrong_place_are_an_error_and_verify_computes_them_again(pair, attack, tmp_path):
    own, other = pair.copy(tmp_path)
    change, shards = ROWS[attack]
    change(own, other)
    with pytest.raises(UserError, match=r"sample 'image-.*' cannot be read from shard 1 of "):
        use(own)
    shutil.copytree(own, tmp_path / "alone.zarr")
    assert use(tmp_path / "alone.zarr")[0] == use(pair.own)[0]
    found = verify_cache(own, repair=True, backbone=tiny_backbone(), dataset=tiny_samples(bad=SKIPPED))
    assert [part["shard"] for part in found["damaged"]["shards"]] == list(shards)
    assert found["repaired"]
    assert (contents(own), contents(receipts(own))) == (contents(pair.own), contents(receipts(pair.own)))


@pytest.mark.parametrize("attack", FILES)
def test_a_file_of_another_core_is_named_and_extract_puts_its_own_back(pair, attack, tmp_path):
    own, other = pair.copy(tmp_path)
    change, named = FILES[attack]
    change(own, other)
    with pytest.raises(UserError, match=rf"own\.zarr' cannot be read .*{named} .*losa-cache verify --repair mends it"):
        train(own, tmp_path / "run")
    assert verify_cache(own)["damaged"]["files"]
    assert pair.again(own) == 0
    assert contents(receipts(own)) == contents(receipts(pair.own))
    require_same(use(own), use(pair.own))
    listed = json.loads((receipts(own) / "core/files.json").read_text())["files"]
    assert {name: contents(own)[name] for name in listed} == {name: contents(pair.own)[name] for name in listed}


def test_an_attacked_test_cache_is_not_evaluated_on(pair, tmp_path):
    own, other = pair.copy(tmp_path)
    run = train(own, tmp_path / "run").run
    right = lc.evaluate_run(run, cache=own)
    exchange_shards(1)(own, other)
    with pytest.raises(UserError, match="cannot be read from shard"):
        lc.evaluate_run(run, cache=own)
    exchange_shards(1)(own, other)
    assert lc.evaluate_run(run, cache=own)["loss"] == right["loss"]
    take("labels/c/0")(own, other)
    with pytest.raises(UserError, match="labels/c/0"):
        lc.evaluate_run(run, cache=own)


@pytest.mark.parametrize("part", ["", "core"])
def test_receipts_of_another_cache_are_refused_and_nothing_is_overwritten(pair, part, tmp_path):
    own, other = pair.copy(tmp_path)
    shutil.rmtree(receipts(own) / part)
    shutil.copytree(receipts(other) / part, receipts(own) / part)
    before = contents(own)
    with pytest.raises(UserError, match=r"its file zarr\.json differs from what its receipts say"):
        use(own)
    for attempt in (lambda: pair.again(own), lambda: verify_cache(own, repair=True)):
        with pytest.raises(
            UserError,
            match=r"belongs to the cache sha256:.*, but its receipts .* sha256:.*restore the one that was exchanged",
        ):
            attempt()
    assert contents(own) == before


@pytest.mark.parametrize(
    "every",
    ["predicted", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("int8", "compressed", "views"))],
    indirect=True,
)
def test_a_cache_without_lists_trains_to_the_same_numbers_and_gets_them_by_extract(every, tmp_path):
    own, _ = every.copy(tmp_path)
    shutil.rmtree(receipts(own) / "checksums")
    old = contents(receipts(own))
    require_same(use(own), use(every.own))
    assert train(own, tmp_path / "a").metrics["train_loss"] == train(every.own, tmp_path / "b").metrics["train_loss"]
    assert verify_cache(own)["intact"]
    copied = stage_cache(open_cache(own), tmp_path / "near")
    assert contents(copied.receipts) == contents(receipts(every.own))
    assert contents(receipts(own)) == old  # readers write nothing
    assert every.again(own) == 0
    assert contents(receipts(own)) == contents(receipts(every.own))
    shutil.rmtree(receipts(own) / "checksums")
    assert verify_cache(own, repair=True)["intact"]
    assert contents(receipts(own)) == contents(receipts(every.own))


@pytest.mark.parametrize("attack", [*SHARDS, *ROWS])
def test_a_cache_without_lists_is_held_to_its_receipts_too(pair, attack, tmp_path):
    own, other = pair.copy(tmp_path)
    (SHARDS | ROWS)[attack][0](own, other)
    shutil.rmtree(receipts(own) / "checksums")
    with pytest.raises(UserError, match=r"cannot be read from shard [12] of "):
        use(own)


def test_a_list_that_is_damaged_missing_or_of_another_shard_is_found_and_written_again(pair, tmp_path):
    own, _ = pair.copy(tmp_path)
    lists = receipts(own) / "checksums"
    exchange(lists / "000000.crc32c", lists / "000001.crc32c")
    (lists / "000002.crc32c").unlink()
    (lists / "000003.crc32c").write_bytes(b"")
    require_same(use(own), use(pair.own))  # what lies behind the chunks says the same
    found = verify_cache(own, repair=True)
    assert found["damaged"]["files"] == [f"own.zarr.receipts/checksums/{n:06d}.crc32c" for n in range(4)]
    assert found["repaired"]
    assert contents(receipts(own)) == contents(receipts(pair.own))


@pytest.mark.parametrize("damage", ["gone", "flipped", "a pipe", "a folder"])
@pytest.mark.parametrize("name", ["000001.json", "core/files.json", "core"])
def test_receipts_that_are_damaged_are_refused_and_mended(pair, name, damage, tmp_path):
    own, _ = pair.copy(tmp_path)
    file = receipts(own) / name
    if name == "core":
        file.rename(file.with_name("core.old" if damage == "gone" else "nothing"))  # a kill; somebody
    elif damage == "flipped":
        file.write_bytes(file.read_bytes().replace(b"0", b"1", 1))
    else:
        file.unlink()
        if damage != "gone":
            os.mkfifo(file) if damage == "a pipe" else file.mkdir()
    named = "shard 1" if name == "000001.json" else r"files\.json"
    with pytest.raises(UserError, match=f"{named}.*verify --repair mends it"):
        use(own)
    assert verify_cache(own)["damaged"] != {"files": [], "shards": [], "samples": []}


def test_the_copy_that_a_kill_left_under_another_name_is_taken_again(pair, tmp_path):
    for mend in (pair.again, lambda path: verify_cache(path, repair=True)):
        own, other = pair.copy(tmp_path)
        (receipts(own) / "core").rename(receipts(own) / "core.old")
        take("labels/c/0")(own, other)  # it is what says that this is wrong
        mend(own)
        assert (contents(own), contents(receipts(own))) == (contents(pair.own), contents(receipts(pair.own)))
        for path in (own, receipts(own), other, receipts(other)):
            shutil.rmtree(path)


def test_what_a_kill_left_of_copies_and_receipts_is_removed(pair, tmp_path):
    own, _ = pair.copy(tmp_path)
    for left in ("core.old/tail/norm.bias/zarr.json", "core.partial/zarr.json", "checksums/000001.crc32c.partial"):
        (receipts(own) / left).parent.mkdir(parents=True, exist_ok=True)
        (receipts(own) / left).write_bytes(b"{")
    assert pair.again(own) == 0
    assert (contents(own), contents(receipts(own))) == (contents(pair.own), contents(receipts(pair.own)))


def test_without_any_copy_extract_trusts_what_its_inputs_give_and_nothing_else(pair, tmp_path):
    own, other = pair.copy(tmp_path)
    shutil.rmtree(receipts(own) / "core")
    take("labels/c/0")(own, other)
    with pytest.raises(UserError, match=r"^labels of '.*own\.zarr' are not those of this data set"):
        pair.again(own)
    shutil.copy(pair.own / "labels/c/0", own / "labels/c/0")
    assert pair.again(own) == 0
    assert contents(receipts(own)) == contents(receipts(pair.own))


def test_an_incomplete_cache_opens_whatever_its_copy_is(pair, tmp_path):
    own, other = pair.copy(tmp_path)
    edit(lambda m: m.update(complete=False))(own, other)
    for change in (lambda: None, lambda: shutil.rmtree(receipts(own) / "core"), lambda: shutil.rmtree(receipts(own))):
        change()
        assert open_cache(own, incomplete=True).layout.samples == 23
        with pytest.raises(UserError, match="is incomplete: run the same"):
            open_cache(own)


def test_a_cache_that_came_without_its_receipts_opens_with_one_warning(pair, tmp_path, caplog):
    shutil.copytree(pair.own, tmp_path / "alone.zarr")
    for _ in range(2):
        require_same(use(tmp_path / "alone.zarr"), use(pair.own))
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "alone.zarr lies without its .receipts folder" in said
    (tmp_path / "alone.zarr.receipts").mkdir()
    (tmp_path / "alone.zarr.receipts" / "lock").touch()  # as --stage or an extraction that was refused leaves it
    use(tmp_path / "alone.zarr")


@pytest.mark.parametrize("change", ["labels as float64", "fewer labels than rows", "text as a shape", "no shards"])
def test_metadata_that_no_receipt_holds_is_refused_where_it_does_not_fit(pair, change, tmp_path):
    own, other = pair.copy(tmp_path)
    shutil.rmtree(receipts(own))
    if change == "labels as float64":
        float_labels(own, other)
    else:
        name = "activations/block/zarr.json" if change == "no shards" else "labels/zarr.json"
        content = json.loads((own / name).read_text())
        if change == "no shards":
            content["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}]
        else:
            content["shape"] = "many" if change == "text as a shape" else [22]
        (own / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot be read as a cache"):
        use(own)


def test_a_staged_copy_is_held_to_its_receipts_too(pair, tmp_path):
    own, other = pair.copy(tmp_path)
    near = tmp_path / "near"
    copied = stage_cache(open_cache(own), near)
    require_same(use(copied.path), use(pair.own))
    exchange(shard(copied.path, 1), shard(copied.path, 2))
    with pytest.raises(UserError, match=r"cannot be read from shard [12] of '.*near/own-"):
        train(own, tmp_path / "run", stage=near)
    exchange(shard(copied.path, 1), shard(copied.path, 2))
    shutil.copy(other / "labels/c/0", copied.path / "labels/c/0")
    with pytest.raises(UserError, match=r"labels/c/0"):
        train(own, tmp_path / "another run", stage=near)


@pytest.mark.parametrize("lists", [True, False], ids=["lists", "no lists"])
def test_a_cache_over_http_is_held_to_its_receipts_too(pair, lists, tmp_path, caplog):
    own, other = pair.copy(tmp_path)
    if not lists:
        shutil.rmtree(receipts(own) / "checksums")
    receipt._told.clear()
    with http_server(tmp_path) as address:
        require_same(use(f"{address}/own.zarr"), use(pair.own))
        said = [record.getMessage() for record in caplog.records if "lacks lists of checksums" in record.getMessage()]
        assert len(said) == (0 if lists else 1)
        exchange_shards(1)(own, other)
        with pytest.raises(UserError, match=r"cannot be read from shard [12] of 'http.*own\.zarr'"):
            use(f"{address}/own.zarr")
        with pytest.raises(UserError, match=r"shard [12] of 'http.*own\.zarr' is damaged"):
            stage_cache(open_cache(f"{address}/own.zarr"), tmp_path / "near")
        exchange_shards(1)(own, other)
        take("sample_ids/c/0/0")(own, other)
        with pytest.raises(UserError, match="sample_ids/c/0/0 differs from what its receipts say"):
            use(f"{address}/own.zarr")


@pytest.mark.usefixtures("s3_environment")
@pytest.mark.parametrize("attack", ["two shards exchanged", "with their receipts", "with receipt and list", "labels"])
@pytest.mark.slow
def test_on_s3_what_is_in_the_wrong_place_is_named_and_extract_mends_it(pair, attack, tmp_path, request):
    own, other = pair.copy(tmp_path)
    change, what = (SHARDS | FILES)[attack]
    change(own, other)
    (receipts(own) / "lock").unlink()
    url = f"s3://{BUCKET}/binding/{attack.replace(' ', '-')}/own.zarr"
    upload(own, url)
    upload(receipts(own), f"{url}.receipts")
    with pytest.raises(UserError, match="labels/c/0" if attack == "labels" else r"shard [12] of 's3:.*verify --repair"):
        use(url)
    whole = open_cache(pair.own)
    computed = [] if attack == "labels" else [row for n in what for row in whole.layout.rows(n)]
    assert pair.again(url) == len(computed)
    require_same(use(url), use(pair.own))
    place = RemotePath.parse(url)
    for there, here in ((place, pair.own), (receipts_of(place), receipts(pair.own))):
        found = {name: (there / name).read() for name in there.names()}
        assert found == {
            p.relative_to(here).as_posix(): p.read_bytes() for p in here.rglob("*") if p.is_file() and p.name != "lock"
        }

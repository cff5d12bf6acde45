"""Files, URLs and folders that a sweep cannot use: one sentence each, and nothing of a password anywhere."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from losa_cache.errors import UserError
from losa_cache.files import unsealed, write_sealed
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.run import resume_sweep, sweep
from losa_cache.sweep.engine.space import Choices, parse, read_space, split_fixed
from losa_cache.sweep.engine.storage import hidden, same_database, without_password
from losa_cache.sweep.engine.sweep import Sweep, create_sweep
from losa_cache.train.placement import Placement
from tests.sweep.test_sweep import BASE, CPU, run

SMALL = replace(BASE, epochs=2)
LINKS = zip("abcdefgh", "bcdefghi", strict=True)
BOMB = "a: &a [1,2,3,4,5,6,7,8,9]\n" + "".join(f"{n}: &{n} [{','.join([f'*{p}'] * 9)}]\n" for p, n in LINKS)
SPACES = {
    "empty": (b"", "holds no options"),
    "a byte order mark": ("\ufeffrank: [4, 8]".encode(), None),
    "not UTF-8": (b"rank: [4, \xff]", "is not UTF-8"),
    "zero bytes": (b"rank: [4, \x00]", "is no YAML"),
    "aliases": (BOMB.encode(), "it has an alias"),
    "deep": (b"rank: " + b"[" * 30_000, "nested too deeply"),
    "large": (b"rank: [" + b"1," * 1_000_000 + b"1]", "larger than 65536 bytes"),
    "many": (b"lr: [" + b",".join(b"0.%05d" % n for n in range(1, 2000)) + b"]", "lr has 1999 values"),
    "a long integer": (b"rank: 0x" + b"f" * 10_000, "rank is"),
    "a longer integer": (b"rank: " + b"9" * 10_000, "cannot be read"),
    "an infinite rank": (b"rank: [.inf, 4]", "rank is inf"),
    "no number": (b"lr: [.nan, 0.1]", "lr is nan"),
    "an infinite end": (b"lr: 1e-3..1e999", "lr is '1e999'"),
    "the wrong way round": (b"lr: 1e-2..1e-3", "the smaller one first"),
    "twice": (b"rank: [4, 4.0]", "rank lists 4 twice"),
    "a name twice": (b"rank: [4]\nrank: [8]", "it has 'rank' twice"),
    "a name twice otherwise": (b"batch-size: 4\nbatch_size: 8", "has batch-size twice"),
    "no values": (b"rank: []", "rank has 0 values"),
    "a mapping": (b"rank: {low: 4}", "rank is {'low': 4}"),
    "a date": (b"lr: 2020-01-01", "lr is datetime.date"),
    "nothing": (b"lr:", "lr is None"),
    "a truth": (b"rank: yes", "rank is True"),
    "nested lists": (b"rank: [[4, 8]]", "rank is [4, 8]"),
    "names of layers": (b"layers: [[a, b]]", "layers is ['a', 'b']"),
    "an unknown option": (b"\"a\\e[2Jb\": 4", "a\\x1b[2Jb cannot be swept"),
    "a number as a name": (b"4: [4]", "holds no options"),
    "a class": (b"rank: !!python/object/apply:os.system ['true']", "is no YAML"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPACES)
def test_a_space_is_read_within_bounds(name, tmp_path):
    content, said = SPACES[name]
    (tmp_path / "s.yaml").write_bytes(content)
    if said is None:
        assert read_space(tmp_path / "s.yaml") == {"rank": Choices((4, 8))}
        return
    with pytest.raises(UserError) as raised:
        read_space(tmp_path / "s.yaml")
    assert said in str(raised.value)
    assert len(str(raised.value)) < 500
    assert "\n" not in str(raised.value)


def test_what_is_no_file_is_no_space(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, said in (("pipe.yaml", "named pipe"), (".", "a folder"), ("/dev/zero", "a device"), ("none", "No such")):
        with pytest.raises(UserError, match=said):
            read_space(tmp_path / path)
    (tmp_path / "deep.toml").write_text("rank = " + "[" * 5000)
    with pytest.raises(UserError, match="nested too deeply"):
        read_space(tmp_path / "deep.toml")


def test_a_grid_is_bounded_before_it_is_listed():
    space = {name: Choices(tuple(range(1000))) for name in ("rank", "epochs", "seed", "batch_size")}
    with pytest.raises(UserError, match=r"the grid has 1000000000000 combinations, more than 10000: list fewer"):
        SweepConfig(cache="c", space=space)
    with pytest.raises(UserError, match="seeds is 1000000: it must be from 1 to 1000"):
        split_fixed({"rank": "4"}, None, 1_000_000)
    for text in ("inf", "nan", "1e400", "1e300", "-1e99"):
        with pytest.raises(UserError, match="rank is"):
            parse("rank", text)


SECRET = "s3cr%2Fet"
URL = f"postgresql://user:{SECRET}@nowhere.invalid:1/base?sslpassword=hush&application_name=x"


def test_passwords_are_neither_stored_nor_told(tiny_cache, tmp_path):
    public = "postgresql://user@nowhere.invalid:1/base?application_name=x"
    assert without_password(URL) == public
    assert same_database(public, URL) == URL
    with pytest.raises(UserError, match="give the same again") as other:
        same_database(public, URL.replace("/base", "/other"))
    config = SweepConfig(cache=str(tiny_cache.path), space={"rank": Choices((2, 4))}, base=SMALL, storage=URL)
    create_sweep(tmp_path / "s", config)
    with pytest.raises(UserError, match="storage 'postgresql://user@nowhere") as failed:  # no driver, or no server
        resume_sweep(tmp_path / "s", device="cpu", storage=URL)
    with pytest.raises(UserError, match="give --storage with it again, or set PGPASSWORD") as without:
        resume_sweep(tmp_path / "s", device="cpu")
    written = b"".join(path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()).decode("latin-1")
    told = [str(own.value) for own in (other, failed, without)] + [repr(config), written]
    assert failed.value.__cause__ is None
    for secret in ("s3cr", "hush"):
        assert not [text for text in told if secret in text]
    assert SweepConfig.load(tmp_path / "s").storage == public
    for wrong in ("user:s3cret@host/base", "postgresql://user:s3cret@host:port/base", "", "redis://:s3cret@host"):
        with pytest.raises(UserError, match="storage") as refused:
            sweep(tiny_cache, space={"rank": [2, 4]}, config=SMALL, out=tmp_path / "t", device="cpu", storage=wrong)
        assert "s3cret" not in str(refused.value)
        assert not (tmp_path / "t").exists()
    assert hidden("connect to https://me:pw@host failed") == "connect to https://me:***@host failed"


@pytest.mark.slow
def test_sweeps_in_one_database_do_not_mix(tiny_cache, tmp_path):
    storage = f"sqlite:///{tmp_path / 'all.db'}"
    for name, ranks in (("a", (2, 4)), ("b", (3, 5, 6))):
        space = {"rank": Choices(ranks)}
        create_sweep(tmp_path / name, SweepConfig(cache=str(tiny_cache.path), space=space, base=SMALL, storage=storage))
        Sweep(tmp_path / name, placement=Placement(CPU), report=lambda _: None).run()
    found = [
        [trial.params["rank"] for trial in optuna.load_study(study_name=own, storage=storage).get_trials()]
        for own in optuna.get_all_study_names(storage)
    ]
    assert sorted(found) == [[2, 4], [3, 5, 6]]


def stopped_in(folder, cache):
    """A sweep that stopped in the middle."""
    space = {"lr": Choices((0.01, 0.03, 0.1))}
    create_sweep(folder, SweepConfig(cache=str(cache.path), space=space, base=SMALL, concurrent=2))

    def stop(standing):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sweep(folder, placement=Placement(CPU), report=stop).run()
    return folder


@pytest.fixture(scope="module")
def stopped_once(tiny_original, tmp_path_factory):
    """What ``stopped`` copies."""
    return stopped_in(tmp_path_factory.mktemp("stopped") / "s?{x}%", tiny_original)


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A sweep that stopped in the middle, the test's own."""
    return shutil.copytree(stopped_once, tmp_path / stopped_once.name)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "progress.json": (flip, "progress.json"),
    "sweep.json": (lambda path: path.write_text(path.read_text().replace("0.03", "0.02")), "were changed"),
    "cohorts/0000-0001.pt": (flip, "0000-0001.pt"),
    "trials/0000": (shutil.rmtree, "trial 0 cannot be read"),
    "trials/0001/metrics.jsonl": (lambda path: path.write_text(""), "has not the metrics of its 1 epochs"),
    "study.db": (lambda path: path.write_bytes(b"x" * 5000), "delete it, and --resume writes it again"),
    "cohorts": (shutil.rmtree, "cohorts"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_named(name, stopped):
    damage, said = DAMAGES[name]
    damage(stopped / name)
    with pytest.raises(UserError, match=said):
        resume_sweep(stopped, device="cpu")
    if name == "study.db":  # it shows the sweep, and decides nothing
        (stopped / name).unlink()
        assert len(resume_sweep(stopped, device="cpu").record.trials) == 3
        with pytest.raises(UserError, match="is no sweep"):
            resume_sweep(stopped / "trials", device="cpu")
        flip(stopped / "record.json")
        with pytest.raises(UserError, match="record.json' cannot be read: it was altered"):
            resume_sweep(stopped, device="cpu")


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_of_a_trial_is_found_and_named(tiny_cache, tmp_path):
    (tmp_path / "held.txt").write_text("\n".join(tiny_cache.ids[::4]))
    base = replace(SMALL, val_fraction=0.0, val_ids=str(tmp_path / "held.txt"))
    config = SweepConfig(cache=str(tiny_cache.path), space={"lr": Choices((0.01, 0.03, 0.1))}, base=base, concurrent=2)
    folder = tmp_path / "s"
    create_sweep(folder, config)

    def stop(standing):
        if standing.finished:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sweep(folder, placement=Placement(CPU), report=stop).run()
    over = {"config.json", "metrics.jsonl", "val_ids.txt", "held_out.npy"}
    over |= {"adapter/config.json", "adapter/adapter.safetensors"}
    for file in ("val_ids.txt", *(f"trials/{number}/{name}" for number in ("0000", "0001") for name in sorted(over))):
        original = (folder / file).read_bytes()
        flip(folder / file)
        with pytest.raises(UserError, match=os.path.basename(file)):
            resume_sweep(folder, device="cpu")
        (folder / file).write_bytes(original)
    found = resume_sweep(folder, device="cpu").record
    create_sweep(tmp_path / "whole", config)
    whole = resume_sweep(tmp_path / "whole", device="cpu").record
    assert [[own["val_loss"] for own in trial.curve] for trial in found.trials] == [
        [own["val_loss"] for own in trial.curve] for trial in whole.trials
    ]


def test_progress_without_checksums_as_earlier_versions_wrote_it_goes_on(stopped):
    progress = unsealed((stopped / "progress.json").read_bytes(), "it")
    del progress["files"]
    for trial in progress["trials"]:
        del trial["files"]
    write_sealed(stopped / "progress.json", progress)
    assert len(resume_sweep(stopped, device="cpu").record.trials) == 3


def test_another_cache_under_the_same_name_is_refused(tiny_cache, tmp_path):
    from losa_cache.extract.extract import extract
    from tests.conftest import tiny_backbone, tiny_samples

    stopped, path = stopped_in(tmp_path / "s", tiny_cache), tiny_cache.path
    shutil.rmtree(path)
    extract(tiny_backbone(1), tiny_samples(), precision="float32", out=path, shard_bytes=13_000)
    with pytest.raises(UserError, match="the cache of the sweep .* is another one now"):
        resume_sweep(stopped, device="cpu")


def test_a_folder_of_an_earlier_version_goes_on(tiny_cache, tmp_path):
    """A kill between a trial's creation and its options, as that version left it."""
    space = {"rank": Choices((2, 4)), "lr": Choices((0.01, 0.03))}
    whole = run(tmp_path / "whole", SweepConfig(cache=str(tiny_cache.path), space=space, base=SMALL))
    old = tmp_path / "old"
    create_sweep(old, SweepConfig(cache=str(tiny_cache.path), space=space, base=SMALL))
    (old / "progress.json").unlink()
    storage = f"sqlite:///{old / 'study.db'}"
    study = optuna.create_study(study_name="losa-cache", storage=storage, direction="maximize")
    for trial in whole:
        study.enqueue_trial(trial.params)
    kinds = {name: optuna.distributions.CategoricalDistribution(own.values) for name, own in space.items()}
    first = study.ask(kinds)
    for epoch, value in whole[0].intermediate_values.items():
        first.report(value, epoch)
    study.tell(first, whole[0].value)
    shutil.copytree(tmp_path / "whole" / "trials" / "0000", old / "trials" / "0000")
    study.ask(kinds)  # of which there is no checkpoint
    study.ask()  # without its options
    Sweep(old, placement=Placement(CPU), report=lambda _: None).run()
    ended = optuna.load_study(study_name="losa-cache", storage=storage).get_trials()
    found = [(trial.params, trial.value) for trial in ended if trial.state.name == "COMPLETE"]
    assert len(found) == 4
    for trial in whole:
        assert [value for params, value in found if params == trial.params] == [pytest.approx(trial.value)]
    assert {trial.state.name for trial in ended} == {"COMPLETE", "FAIL"}


COMMAND = "from losa_cache.cli import main; main()"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_stop_a_sweep_with_advice(number, tiny_cache, tmp_path):
    words = ["sweep", "--cache", str(tiny_cache.path), "--rank", "2,4", "--epochs", "3000", "--out", "s"]
    words += ["--val-fraction", "0.3"]  # fewer than five held-out images choose nothing
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and not list(tmp_path.glob("s/trials/*/metrics.jsonl")):
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + number, said
    assert said.strip().endswith("train and sweep go on with --resume.")
    assert "Traceback" not in said


@pytest.mark.slow
def test_many_trials_need_few_open_files(tiny_cache, tmp_path):
    create_sweep(
        tmp_path / "s",
        SweepConfig(
            cache=str(tiny_cache.path),
            space={"lr": Choices(tuple(n / 1000 for n in range(1, 61)))},
            base=replace(BASE, epochs=1),
        ),
    )
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, before[1]))
    try:
        Sweep(tmp_path / "s", placement=Placement(CPU), report=lambda _: None).run()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(list((tmp_path / "s" / "trials").glob("*/adapter/adapter.safetensors"))) == 60


def test_an_option_that_nobody_knows_is_named_before_any_trial_is_made(stopped):
    path = stopped / "sweep.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"space": content["space"] | {"surprise": [1, 2]}}))
    with pytest.raises(UserError, match="is no sweep .*it searches 'surprise', which this version does not know"):
        resume_sweep(stopped, device="cpu")

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import pytest
from PIL import Image

from losa_cache.cli import app
from losa_cache.errors import UserError
from losa_cache.lock import locked
from losa_cache.pareto import run as effects
from losa_cache.pareto.config import ParetoConfig
from losa_cache.pareto.plan import TRAIN
from losa_cache.pareto.record import FILE, Accuracy, Extraction, Work, load_study
from losa_cache.pareto.rows import rows
from losa_cache.pareto.run import pareto
from losa_cache.sidenet.adapter_folder import read_metrics
from tests.pareto.studies import images

training = import_module("losa_cache.train.train")
SMALL = {"epochs": 1, "batch_size": 8, "seeds": 1, "rates": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two classes of pictures, dark and bright ones."""
    root, drawn = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 8)):
        for name, low in (("dark", 0), ("bright", 150)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = drawn.integers(low, low + 100, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{split}{number}.png")
    return root


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Run each command in this process: a process of its own takes seconds to begin. Gives the commands that ran."""
    ran: list[list[str]] = []

    def run(study, job, report, lock):
        _, _, _, _, *words = effects._words(study, job)
        ran.append(words)
        try:
            app(words, standalone_mode=False)
        except UserError as error:
            return effects._Ended(code=2, error=str(error))
        return effects._Ended(told={"peak": 10**9})

    monkeypatch.setenv("LOSA_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(effects, "_run", run)
    return ran


def asked(data: Path) -> dict:
    return images(dataset="folder", data_dir=str(data))


@pytest.mark.slow
def test_cached_and_online_trainings_learn_of_the_same_samples(here, data, tmp_path):
    config = ParetoConfig(methods="linear,linear:online,full", **SMALL)
    found = pareto(asked(data), out=tmp_path / "study", config=config)
    for row in rows(found):
        assert row.error is None
        assert 0 <= row.mean <= 100
        assert row.choices == 2
        assert row.parameters > 0
        assert row.gmacs > 0
        assert row.peak_gb > 0
        assert row.seconds(16) > row.seconds() > 0
    held_out = {}
    for name in found.works:
        place = tmp_path / "study" / "runs" / name
        if name.endswith("held-out"):
            (own,) = read_metrics(place)
            held_out[name] = own["samples"]
    assert len(held_out) == 6
    assert len(set(held_out.values())) == 1
    tests = [own for work in found.works.values() if isinstance(own := work.result, Accuracy)]
    assert [own.samples for own in tests] == [16] * 3
    for name in ("pareto.html", "pareto.png", "pareto.md"):
        assert (tmp_path / "study" / name).stat().st_size > 0


@pytest.mark.usefixtures("no_figures")
def test_what_is_done_is_read_and_what_is_new_is_added(here, data, tmp_path):
    first = pareto(asked(data), out=tmp_path / "study", config=ParetoConfig(methods="linear", **SMALL))
    here.clear()
    again = pareto(asked(data), out=tmp_path / "study", config=ParetoConfig(methods="linear", **SMALL))
    assert here == []
    assert again == first
    more = pareto(asked(data), out=tmp_path / "study", config=ParetoConfig(methods="fusion,linear", **SMALL))
    assert {word for words in here for word in words if word in ("linear", "fusion")} == {"fusion"}
    assert [row.name for row in rows(more)] == ["linear", "fusion"]
    assert rows(more)[0] == rows(first)[0]
    only = pareto(asked(data), out=tmp_path / "study", config=ParetoConfig(methods="linear", **SMALL))
    assert only == more  # nothing that was compared goes
    with pytest.raises(UserError, match="epochs 1, not 2"):
        pareto(asked(data), out=tmp_path / "study", config=ParetoConfig(**SMALL | {"epochs": 2}))


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_a_kill_before_any_record_loses_nothing_that_was_done(here, data, tmp_path, monkeypatch):
    """The process dies before its first write, the next one before its second, and so on, until one comes through."""

    class KilledError(BaseException):
        pass

    write, left = effects.write_study, [0]

    def dying(study, folder):
        left[0] -= 1
        if left[0] < 0:
            raise KilledError
        write(study, folder)

    config = ParetoConfig(methods="linear", **SMALL)
    whole = pareto(asked(data), out=tmp_path / "whole", config=config)
    here.clear()
    monkeypatch.setattr(effects, "write_study", dying)
    for step in range(100):
        left[0] = step
        try:
            found = pareto(asked(data), out=tmp_path / "killed", config=config)
            break
        except KilledError:
            continue
    assert step > 3
    assert list(found.works) == list(whole.works)
    measured = ("val_top1", "val_loss", "top1", "parameters", "macs")
    for name, work in whole.works.items():
        ours = found.works[name].result
        assert [getattr(ours, key, None) for key in measured] == [getattr(work.result, key, None) for key in measured]
    trained = [words[words.index("--out") + 1] for words in here if words[0] == TRAIN]
    assert len(trained) == len(set(trained)) == 3  # none began twice


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_a_training_that_was_interrupted_goes_on(here, data, tmp_path, monkeypatch):
    class StoppedError(Exception):
        pass

    def stop(*_):
        raise StoppedError

    real = effects._run
    name, config = "linear/lr-0.01/seed-0", ParetoConfig(methods="linear", **SMALL | {"rates": 1})
    with monkeypatch.context() as patched:
        patched.setattr(training, "save_run", stop)  # behind the last epoch
        with pytest.raises(StoppedError):
            pareto(asked(data), out=tmp_path / "study", config=config)
    assert not load_study(tmp_path / "study").work(name).over
    assert effects._run is real
    found = pareto(asked(data), out=tmp_path / "study", config=config)
    assert here[-2] == ["train", "--resume", str(tmp_path / "study" / "runs" / name)]
    assert found.work(name).seconds is None  # no process did all of it
    (row,) = rows(found)
    assert (row.trained, row.timed, row.train_seconds) == (1, 0, None)
    assert row.mean is not None


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_an_extraction_whose_end_was_not_seen_has_neither_seconds_nor_the_memory_of_a_look_at_it(
    here, data, tmp_path, monkeypatch
):
    class KilledError(BaseException):
        pass

    def dying(study, folder):
        if study.works:
            raise KilledError
        write(study, folder)

    write, config = effects.write_study, ParetoConfig(methods="linear", **SMALL | {"rates": 1})
    with monkeypatch.context() as patched:
        patched.setattr(effects, "write_study", dying)
        with pytest.raises(KilledError):
            pareto(asked(data), out=tmp_path / "study", config=config)
    found = pareto(asked(data), out=tmp_path / "study", config=config)
    assert found.work("train.zarr") == Work(Extraction(None))
    assert found.work("test.zarr").result == Extraction(1.0)
    assert rows(found)[0].seconds() is None


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_a_training_that_failed_and_then_ran_from_its_start_has_the_seconds_of_that(here, data, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("out of memory.")

    name, config = "linear/lr-0.01/seed-0", ParetoConfig(methods="linear", **SMALL | {"rates": 1})
    with monkeypatch.context() as patched:
        patched.setattr(training, "fit", lambda *_, **__: fail())
        found = pareto(asked(data), out=tmp_path / "study", config=config)
    assert found.work(name) == Work(error="out of memory.")
    began = perf_counter()
    found = pareto(asked(data), out=tmp_path / "study", config=config)
    assert 0 < found.work(name).seconds < perf_counter() - began


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_a_method_that_fails_is_told_and_tried_again(here, data, tmp_path):
    methods = "last:99,linear"
    config = ParetoConfig(methods=methods, **SMALL)
    found = pareto(asked(data), out=tmp_path / "study", config=config)
    last, linear = rows(found)
    assert "has 8 blocks" in last.error
    assert (last.mean, linear.error) == (None, None)
    assert "has 8 blocks" in (tmp_path / "study" / "pareto.html").read_text()
    here.clear()
    pareto(asked(data), out=tmp_path / "study", config=config)
    assert [words[0] for words in here] == [TRAIN, TRAIN]  # at each of its rates, and nothing else


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_a_cache_that_is_given_is_not_extracted_and_must_be_of_the_same_images(here, data, tmp_path):
    config = ParetoConfig(methods="linear,linear:online", **SMALL | {"rates": 1})
    first = pareto(asked(data), out=tmp_path / "first", config=config)
    caches = {"cache": tmp_path / "first" / "train.zarr", "test_cache": tmp_path / "first" / "test.zarr"}
    here.clear()
    again = pareto(asked(data), out=tmp_path / "again", config=config, **caches)
    assert "extract" not in [words[0] for words in here]
    assert [row.top1 for row in rows(again)] == [row.top1 for row in rows(first)]
    assert rows(again)[0].extract_seconds > 0  # as this user's notes have it
    others, out = tmp_path / "others" / "pictures", tmp_path / "others-study"
    shutil.copytree(data, others)
    next((others / "train" / "dark").iterdir()).unlink()
    swapped = {"cache": caches["test_cache"], "test_cache": caches["test_cache"]}
    own = tmp_path / "first" / "test.zarr"
    for pictures, precision, given, said in (
        (others, "bfloat16", caches, "dataset.fingerprint"),
        (data, "float16", caches, "precision"),
        (data, "bfloat16", swapped, 'dataset.split ("train" of these images, "test" in the cache)'),
        (data, "bfloat16", {"cache": caches["cache"], "test_cache": caches["cache"]}, "dataset.split"),
    ):
        with pytest.raises(UserError, match="is not of these images") as refused:
            pareto(asked(pictures), out=out, config=replace(config, precision=precision), **given)
        assert said in str(refused.value)
    with pytest.raises(UserError, match=r"input.resize|img_size|backbone"):
        pareto(asked(data) | {"resize": "exact"}, out=out, config=config, **caches)
    assert own.exists()
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_a_training_that_is_refused_is_told_again_and_the_others_go_on(here, data, tmp_path):
    config = ParetoConfig(methods="linear:online", **SMALL | {"rates": 1})
    pictures, out = tmp_path / "pictures", tmp_path / "study"
    shutil.copytree(data, pictures)
    pareto(asked(pictures), out=out, config=config)
    next((pictures / "train" / "dark").iterdir()).unlink()
    for methods in ("bitfit", "last"):
        _, bitfit, *_ = rows(pareto(asked(pictures), out=out, config=replace(config, methods=methods)))
        assert "trained on other images" in bitfit.error
    assert "last" in here[-1]


def test_a_folder_of_something_else_is_left_alone(data, tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match="something else"):
        pareto(asked(data), out=tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("left", [[], ["lock"], ["lock", f"{FILE}.partial"]])
def test_a_kill_before_the_first_record_leaves_a_folder_that_can_be_used(left, here, data, tmp_path, monkeypatch):
    for name in left:
        (tmp_path / name).touch()
    monkeypatch.setattr(effects, "next_job", lambda study, folder: None)
    pareto(asked(data), out=tmp_path, config=ParetoConfig(methods="linear"))
    assert load_study(tmp_path).methods == ["linear"]


def test_a_process_of_a_comparison_that_was_killed_keeps_the_next_out(data, tmp_path, monkeypatch):
    """It inherits the lock."""
    seen = []
    listing = ["sh", "-c", "ls -l /proc/self/fd >&2; echo 'error: that is all.' >&2; exit 2"]
    monkeypatch.setattr(effects, "_words", lambda study, job: listing)
    with pytest.raises(UserError, match="that is all"):
        pareto(asked(data), out=tmp_path / "study", report=lambda study, job, line: seen.append(line))
    assert any(line.endswith(str(tmp_path / "study" / "lock")) for line in seen)


def test_two_processes_keep_out_of_each_others_way(data, tmp_path):
    with locked(tmp_path / "lock"), pytest.raises(UserError, match="another process"):
        pareto(asked(data), out=tmp_path)


def test_a_backbone_that_nobody_knows_is_refused_before_anything_is_trained(data, tmp_path):
    with pytest.raises(UserError, match="unknown backbone 'vit_x'"):
        pareto(asked(data) | {"backbone": "vit_x"}, out=tmp_path / "study")
    assert not (tmp_path / "study").exists()


def few_of_each(data: Path, folder: Path) -> None:
    for name in ("dark", "bright"):
        (folder / "train" / name).mkdir(parents=True)
        shutil.copy(data / "train" / name / "train0.png", folder / "train" / name)


def one_class(data: Path, folder: Path) -> None:
    shutil.copytree(data / "train" / "dark", folder / "train" / "dark")
    shutil.copytree(data / "test" / "dark", folder / "test" / "dark")


def another_class(data: Path, folder: Path) -> None:
    shutil.copytree(data / "train", folder / "train")
    shutil.copytree(data / "test", folder / "test")
    (folder / "test" / "dark").rename(folder / "test" / "dim")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (few_of_each, "leaves none"),
        (one_class, "at least two classes: add others with class folders"),
        (another_class, "other classes than split 'train'"),
    ],
)
def test_data_that_nothing_can_be_learned_from_is_refused_before_a_folder_is_made(make, said, here, data, tmp_path):
    folder = tmp_path / "pictures"
    make(data, folder)
    if not (folder / "test").exists():
        shutil.copytree(data / "test", folder / "test")
    with pytest.raises(UserError, match=said):
        pareto(asked(folder), out=tmp_path / "study", config=ParetoConfig(methods="linear"))
    assert here == []
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_comparison_without_any_result_is_an_error_of_the_command(here, data, tmp_path, capsys):
    words = ["pareto", "--backbone", "vit_digits", "--dataset", "folder", "--data-dir", str(data), "--rates", "1"]
    with pytest.raises(UserError, match=r"no method has a result. The first, last:99: .* has 8 blocks"):
        app([*words, "--methods", "last:99", "--out", str(tmp_path / "study")], standalone_mode=False)
    assert "last:99" in capsys.readouterr().out  # with the table nevertheless
    assert (tmp_path / "study" / "pareto.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dataset", "digits"], "--backbone"),
        (["--backbone", "vit_digits"], "--shape-only"),
        (["--backbone", "vit_digits", "--dataset", "digits", "--test-split", "train"], "test on another one"),
        (["--backbone", "vit_digits", "--dataset", "digits", "--test-split", "val"], "no split 'val'"),
        (["--backbone", "vit_digits", "--shape-only", "--epochs", "3"], "leave out --epochs"),
        (["--backbone", "vit_digits", "--shape-only", "--dataset", "digits"], "leave out --dataset"),
        (["--backbone", "vit_digits", "--dataset", "digits", "--rates", "0"], "between 1 and"),
        (["--backbone", "vit_digits", "--dataset", "digits", "--val-fraction", "0"], "above 0"),
        (["--backbone", "vit_digits", "--dataset", "digits", "--methods", "losaa"], "nearest: losa"),
        (["--backbone", "vit_digits", "--dataset", "digits", "--recipe", "papr"], "unknown recipe"),
    ],
)
def test_a_users_mistake_is_one_sentence(words, said):
    with pytest.raises(UserError, match=said):
        app(["pareto", *words], standalone_mode=False)


@pytest.mark.slow
def test_processes_of_their_own_end_with_the_command_and_the_same_command_goes_on(data, tmp_path):
    words = ["pareto", "--backbone", "vit_digits", "--dataset", "folder", "--data-dir", str(data), "--methods"]
    words += ["linear,full", "--epochs", "2", "--seeds", "1", "--rates", "1", "--out", str(tmp_path / "study")]
    command = [sys.executable, "-m", "losa_cache", *words]
    environment = os.environ | {"LOSA_CACHE_HOME": str(tmp_path / "home")}
    begun = subprocess.Popen(command, env=environment, start_new_session=True)
    while not (tmp_path / "study" / "test.zarr").exists():
        assert begun.poll() is None
        sleep(0.2)
    begun.send_signal(signal.SIGINT)
    assert begun.wait(120) == 128 + signal.SIGINT
    done = subprocess.run([*command, "--json"], env=environment, stdout=subprocess.PIPE, check=True)
    told = json.loads(done.stdout)
    assert told == json.loads((tmp_path / "study" / FILE).read_text())
    assert all(row["error"] is None and row["peak_gb"] > 0 for row in told["rows"])

"""Options: typed once in a dataclass, the same on the command line, in files, in run directories and for callers."""

import inspect
import json
import subprocess
import sys
import types
from dataclasses import asdict, fields, replace

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

import losa_cache as lc
from losa_cache.cli import app
from losa_cache.cli_common import given
from losa_cache.errors import UserError
from losa_cache.extract.config import ExtractConfig, PlanConfig
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.train.config import PAPER, RECIPES, TrainConfig
from losa_cache.train.online_config import OnlineConfig
from tests.conftest import results, tiny_backbone, tiny_samples

VERBS = get_command(app).commands
EXTRACT = ["--backbone", "vit_digits", "--dataset", "digits"]


def parsed(verb, *arguments):
    """The parameters of a command, parsed but not run."""
    return VERBS[verb].make_context(verb, list(arguments)).params


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--task", "regression", "--label-smoothing", "0.1"],
            "'regression' smooths no labels: leave out --label",
        ),
        (["--task", "multilabel", "--decoder", "conv"], "'multilabel' makes no maps, .* leave out --decoder"),
        (["--task", "depth", "--dropout", "0.2"], "'depth' has no dropout: leave out --dropout"),
    ],
)
def test_an_option_that_the_task_has_no_use_for_is_refused_where_it_was_given(words, told):
    for verb, more in (("train", []), ("sweep", ["--rank", "2,4"])):
        with pytest.raises(UserError, match=told):
            CliRunner().invoke(app, [verb, *words, *more], catch_exceptions=False)


@pytest.mark.parametrize(
    ("verb", "shape", "others"),
    [
        ("extract", ExtractConfig, {"bits", "error", "scheduler"}),
        ("plan", PlanConfig, {"bits", "error"}),
        ("train", OnlineConfig, None),
        ("train", TrainConfig, None),
        ("probe", lc.ProbeConfig, None),
        ("sweep", SweepConfig, None),
    ],
)
def test_a_field_is_an_option_with_its_help_and_default(verb, shape, others):
    options = {parameter.opts[0]: parameter for parameter in VERBS[verb].params}
    seen = set()
    for field in fields(shape):
        option = next((mark for mark in getattr(field.type, "__metadata__", ()) if hasattr(mark, "help")), None)
        if option is None:
            assert field.name in ("share", "cache", "space", "base")
            continue
        flag = f"--{(option.flag or field.name).replace('_', '-')}"
        seen.add(flag)
        assert options[flag].help == option.help
        assert options[flag].help[-1] == "."
        if field.default is not inspect.Parameter.empty and isinstance(field.default, int | float | str | bool):
            assert options[flag].default == field.default
    if others is not None:
        assert {name for name in options if name not in seen} == {f"--{name}" for name in others} | {
            *("--config", "--json"),
        }


FILES = {
    "a.toml": 'backbone = "vit_digits"\ndataset = "digits"\nlayers = [4, 8]\n"batch-size" = 4\nembedding = true\n',
    "a.yaml": "backbone: vit_digits\ndataset: digits\nlayers: [4, 8]\nbatch_size: 4\nembedding: yes\nlimit: null\n",
    "a.json": '{"backbone": "vit_digits", "dataset": "digits", "layers": [4, 8], "batch_size": 4, "embedding": true}',
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("verb", ["extract", "plan"])
def test_a_file_gives_options_and_the_command_line_wins(name, verb, tmp_path):
    (tmp_path / name).write_text(FILES[name])
    found = parsed(verb, "--config", str(tmp_path / name), "--batch-size", "8", "--no-embedding")
    assert (found["backbone"], found["dataset"], found["layers"]) == ("vit_digits", "digits", "4,8")
    assert (found["batch_size"], found["embedding"]) == (8, False)
    alone = parsed(verb, "--config", str(tmp_path / name))
    assert (alone["batch_size"], alone["embedding"], alone["limit"]) == (4, True, None)


@pytest.mark.parametrize(
    ("verb", "content", "message"),
    [
        ("train", "rnk: 8", r"a\.yaml' has 'rnk', which is no option of train; nearest: rank\.$"),
        ("train", "rank: 8.5", r"rank in '.*a\.yaml' is 8\.5: it must be a whole number\."),
        ("train", "rank: true", "rank in .* is True: it must be a whole number"),
        ("train", "lr: fast", "lr in .* is 'fast': it must be a number"),
        ("extract", "embedding: 7", "embedding in .* is 7: it must be true or false"),
        ("train", "head: {a: 1}", "head in .* is {'a': 1}: it must be text"),
        ("sweep", "tracker: {a: b}", "tracker in .* is {'a': 'b'}: it must be a list of texts"),
        ("train", "online: 1", "online in .* is 1: it must be true or false"),
        ("train", "no_online: true", "has 'no_online', which is written online: false in a file"),
        ("train", "zzz: 1", "has 'zzz', which is no option of train: leave it out"),
        ("train", "", "holds no options: write each as a name and a value"),
        ("train", "rank: 4\nlr: [1", r"it is no YAML \(.*, line 2, column \d+\)"),
        ("train", "[1, 2]", "config .* holds no options"),
        ("train", "batch-size: 4\nbatch_size: 8", "has batch-size twice"),
        ("train", "a: [", "it is no YAML"),
    ],
)
def test_a_file_that_cannot_work_is_one_sentence(verb, content, message, tmp_path):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        parsed(verb, "--config", str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"rank": 4,\n"lr": }', r"it is no JSON \(.*line 2 column 7"),
        ("rank: 4", "it is no JSON"),
        ('{"rank": 4, "rank": 8}', "it is no JSON .*'rank' twice"),
        ("[" * 60_000, "nested too deeply"),
        ("{}", "holds no options"),
    ],
)
def test_a_json_file_is_read_as_json(content, message, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=message):
        parsed("train", "--config", str(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text('{\n\t"rank": 4\n}')
    assert parsed("train", "--config", str(tmp_path / "a.json"))["rank"] == 4


def test_an_option_of_another_command_is_named_with_it(tmp_path):
    (tmp_path / "a.yaml").write_text("on_error: skip")
    done = CliRunner().invoke(app, ["plan", "--config", str(tmp_path / "a.yaml")])
    assert str(done.exception).endswith("has 'on_error', which is an option of extract and not of plan: leave it out.")


def test_one_text_is_a_list_of_one(tmp_path):
    (tmp_path / "a.yaml").write_text("tracker: mlflow\n")
    assert parsed("sweep", "--config", str(tmp_path / "a.yaml"))["tracker"] == ["mlflow"]


def test_there_is_one_file(tmp_path):
    (tmp_path / "a.yaml").write_text("rank: 4")
    with pytest.raises(UserError, match="--config is there 2 times"):
        parsed("train", *["--config", str(tmp_path / "a.yaml")] * 2)
    with pytest.raises(UserError, match="a path is empty"):
        parsed("train", "--config", "")


def test_every_on_off_option_can_be_taken_back():
    for verb in VERBS.values():
        for own in verb.params:
            if getattr(own, "is_flag", False) and own.name not in ("help", "show"):
                assert own.secondary_opts == [f"--no-{own.opts[0].removeprefix('--')}"], own.opts


def test_numbers_of_files_are_those_of_the_command_line(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 1e-3\nepochs: 2\nlayers: 3\nval_fraction: 0\ncutmix: 1\n")
    found = parsed("train", "--config", str(tmp_path / "a.yaml"))
    names = ("lr", "epochs", "layers", "val_fraction", "cutmix")
    assert [found[name] for name in names] == [0.001, 2, "3", 0.0, 1.0]
    (tmp_path / "b.yaml").write_text("rank: [4, 8]\nlr: [1e-3]\nretrain: true\ntracker: [mlflow]\n")
    found = parsed("sweep", "--config", str(tmp_path / "b.yaml"), "--rank", "2,4")
    assert [found[name] for name in ("rank", "lr", "retrain", "tracker")] == ["2,4", "1e-3,", True, ["mlflow"]]


REFUSED = {
    "extract --backbone vit_b --dataset places365": "data set 'places365' needs --data-dir: the folder that holds it.",
    "plan --backbone vit_b --dataset digts": "unknown data set 'digts': it is no folder either; nearest: digits",
    "extract --backbone vit_b --dataset digits --tap x": "unknown tap 'x'",
    "extract --backbone vit_b --dataset digits --views 3": "say with --augment how",
    "extract --backbone vit_b --dataset digits --on-error go": "on-error is 'go': choose stop or skip.",
    "plan --backbone vit_b --dataset digits --on-error skip": "plan has no option '--on-error', which is one of extr",
    "plan --backbone vit_b --dataset digits --bits 1 --precision int8": "leave out --precision",
    "extract --config a.yaml": "has 'rnk', which is no option of extract",
    "train --rnk 4": "train has no option '--rnk'; nearest: --rank: losa-cache train --help lists all.",
    "train --start middle": "choose one of output, embedding",
    "train --augment crop": "leave out --augment",
    "train --resume r --rank 4": "leave out --rank",
    "train --resume r --config b.yaml": "leave out --rank, which stands in the file of --config",
    "train --resume r": "'r' is no run directory",
    "train --config r": "'r' is no run directory",
    "train --config there": "config 'there' cannot be read: No such file or directory.",
    "sweep --rank 0.5": "write numbers",
    "extract --backbone vit_b --dataset digits --precision int3": "unknown precision 'int3': choose one of float32",
    "extract --backbone vit_b --dataset digits --precision predict:9": "bits of 'predict:9' must lie between 0 and 8",
    "extract --backbone vit_b --dataset digits --tokens pooled --bits 1": "but pooled rows are few and small",
    "extract --backbone vit_b --dataset digits --bits nan": "bits is nan: it must lie between",
    "plan --backbone vit_b --dataset digits --error 0": "error is 0: it must lie between",
    "plan --backbone vit_b --dataset digits --max-device-memory much": "'much' is no size: write 4GB",
    "extract --backbone vit_b --dataset digits --decoder turbo": "unknown decoder 'turbo': choose one of pillow, nvj",
    "extract --backbone vit_b --dataset digits --split val": "digits has no split 'val': choose one of train, test.",
    **{
        f"{verb} --backbone vit_b --dataset Places-365": "data set 'places365' needs --data-dir: the folder that holds"
        for verb in ("extract", "plan", "train --online")
    },
    "extract --backbone vit_b --dataset digits --out ftp://x/c.zarr": "URLs of ftp:// cannot be opened: give a path or",
    "extract --backbone vit_b --dataset digits --layers 0": "0 layers cannot be chosen",
    "extract --backbone vit_b --dataset digits --device abacus": "device 'abacus' cannot be used: choose cpu, cuda or",
    "train --layers abc": "layers 'abc' are neither 'all', nor a number, nor a list",
    "train --layers 0,12": "there is no layer 0: blocks are numbered from 1.",
    "train --sampling nofile": "sampling is 'nofile', and there is no such file",
    "train --val-ids nofile": "val-ids is 'nofile', a file that cannot be read",
    "train --auto --val-ids r": "val-ids is 'r', a file that cannot be read (it is a folder)",
    "train --residency ram": "unknown residency 'ram': choose one of auto, device, memory, disk.",
    "train --val-fraction 1": "val-fraction is 1.0: it must be below 1",
    "train --device cuda:x": "device 'cuda:x' cannot be used: choose cpu, cuda or",
    "train --online --backbone vit_b --dataset digits --precision int3": "unknown precision 'int3'",
    "train --online --backbone vit_b --dataset digits --split val": "digits has no split 'val'",
    "train": "there is no complete training cache yet",
    "train --auto": "there is no complete training cache yet",
    "probe": "there is no complete training cache yet",
    "sweep --rank 4,8": "there is no complete training cache yet",
    "sweep": "there is nothing to sweep: list values",
    "sweep --sampler grid": "there is nothing to sweep: list values",
    "sweep --rank 4,8 --tracker comet": "unknown tracker 'comet': choose one of wandb, mlflow.",
    "sweep --rank -1,8": "rank is -1: it must lie between",
    "sweep --rank 4,8 --val-ids nofile": "val-ids is 'nofile', a file that cannot be read",
    "sweep --resume nowhere": "'nowhere' is no sweep",
    "eval nowhere": "'nowhere' holds no adapter: there is no such folder",
    "vtab nowhere": "there is no folder 'nowhere': name the one that holds the caches.",
    "vtab r --ranks 1..8": "ranks is '1..8': list them",
    "compare a b": "there is neither a run nor a cache at 'a'",
    "verify nowhere.zarr": "there is no cache at 'nowhere.zarr'",
}


def test_refusals_import_no_torch(tmp_path):
    (tmp_path / "a.yaml").write_text("rnk: 4")
    (tmp_path / "b.yaml").write_text("rank: 4")
    (tmp_path / "r").mkdir()
    code = """if True:
        import json, sys
        sys.modules["torch"] = None
        from losa_cache.cli import main
        for command in json.loads(sys.argv[1]):
            sys.argv = ["losa-cache", *command.split()]
            try:
                main()
            except SystemExit as end:
                print(end.code, flush=True)
    """
    commands = list(REFUSED)
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["2"] * len(commands), done.stderr
    for line, command in zip(done.stderr.splitlines(), commands, strict=True):
        assert line.startswith("error: ")
        assert REFUSED[command] in line, command


def test_config_of_a_run_repeats_it(tiny_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ids.txt").write_text("image-003\nimage-011\n")
    options = {"rank": 2, "layers": [2, 4], "epochs": 2, "warmup": 0.3, "head": "last", "lr": 0.01, "batch_size": 5}
    first = lc.train(tiny_cache, out="first", device="cpu", val_ids="ids.txt", **options)
    (tmp_path / "ids.txt").unlink()  # the run keeps its own
    for name in ("first", "first/config.json"):
        out = name.replace("/", "-")
        done = CliRunner().invoke(
            app, ["train", "--config", name, "--out", f"again-{out}", "--device", "cpu"], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        again = lc.load_adapter(tmp_path / f"again-{out}").adapter.state_dict()
        for key, value in lc.load_adapter(first.run).adapter.state_dict().items():
            assert torch.equal(value, again[key]), key
        assert results(tmp_path / f"again-{out}") == results(first.run)
    more = CliRunner().invoke(app, ["train", "--config", "first", "--epochs", "1", "--out", "short", "--device", "cpu"])
    assert more.exit_code == 0, more.output
    assert len(results(tmp_path / "short")) == 1


def test_config_of_runs_of_earlier_versions_and_with_the_backbone(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    cache = str(tmp_path)
    online = {"backbone": "vit_digits", "dataset": "digits", "limit": 64, "share": 0.5, "augment": "crop"}
    content = {"train": {"rank": 4}, "cache": cache, "online": online, "fields": {}}
    (run / "config.json").write_text(json.dumps(content))
    found = parsed("train", "--config", str(run))
    assert (found["head"], found["dropout"], found["rank"], found["cache"]) == ("last", 0.0, 4, cache)
    names = ("mixed", "online", "online_limit", "limit", "augment", "ignore_orientation")
    assert [found[name] for name in names] == [0.5, False, 64, None, "crop", True]


def test_what_a_run_stores_by_default_may_still_be_set_by_a_recipe_or_a_search(tmp_path):
    content = {"train": asdict(TrainConfig(rank=4)), "cache": str(tmp_path), "online": None, "fields": {}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    context = VERBS["train"].make_context("train", ["--config", str(tmp_path)])
    assert not [own.name for own in fields(TrainConfig) if given(context, own.name)]
    assert TrainConfig(**{own.name: context.params[own.name] for own in fields(TrainConfig)}) == TrainConfig(rank=4)


def trained(monkeypatch, tmp_path, stored, *words):
    """What ``train`` is called with when it repeats a run that stores these options."""
    online = stored.pop("online", None)
    content = {"train": stored, "cache": None if online else str(tmp_path), "online": online, "fields": {}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    seen = {}

    def stop(cache, **options):
        seen.update(options)
        raise UserError("enough")

    import losa_cache.train.train  # noqa: F401

    monkeypatch.setattr(sys.modules["losa_cache.train.train"], "train", stop)
    monkeypatch.setattr("losa_cache.cache.store.open_cache", lambda path: None)
    monkeypatch.setattr("losa_cache.cache.store.latest_training_cache", lambda **_: types.SimpleNamespace(path="c"))
    done = CliRunner().invoke(app, ["train", "--config", str(tmp_path), *words])
    assert str(done.exception) == "enough", done.exception
    return seen["config"], seen["online"]


def test_what_is_typed_displaces_what_a_run_stores(tmp_path, monkeypatch):
    ids = tmp_path / "ids.txt"
    ids.write_text("a\n")
    config, _ = trained(monkeypatch, tmp_path, {"lr": 0.5, "epochs": 7}, "--recipe", "paper")
    assert (config.lr, config.epochs, config.head) == (0.5, RECIPES[PAPER]["epochs"], RECIPES[PAPER]["head"])
    config, _ = trained(monkeypatch, tmp_path, {"epochs": 7})
    assert config.epochs == 7
    config, _ = trained(monkeypatch, tmp_path, {"val_fraction": 0.3}, "--val-ids", str(ids))
    assert config.val_ids == str(ids)
    config, _ = trained(monkeypatch, tmp_path, {"val_fraction": 0.3}, "--val-fraction", "0.2")
    assert (config.val_fraction, config.val_ids) == (0.2, None)
    images = {"backbone": "vit_digits", "dataset": "digits", "share": 1.0}
    assert trained(monkeypatch, tmp_path, {"online": dict(images)})[1].share == 1
    assert (
        trained(monkeypatch, tmp_path, {"online": dict(images)}, "--mixed", "0.25", "--cache", str(tmp_path))[1].share
        == 0.25
    )
    assert trained(monkeypatch, tmp_path, {"online": dict(images)}, "--no-online", "--cache", str(tmp_path))[1] is None
    assert trained(monkeypatch, tmp_path, {"online": images | {"share": 0.5}}, "--online")[1].share == 1
    away = ["--no-online", "--cache", str(tmp_path)]
    assert trained(monkeypatch, tmp_path, {"online": images | {"share": 0.5}}, *away)[1] is None
    done = CliRunner().invoke(app, ["train", "--config", str(tmp_path), "--auto"])
    assert "--auto chooses from a cache, without the backbone: pass --no-online and --cache." in str(done.exception)


def test_a_range_is_taken_as_a_sweep_stores_it(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: {low: 0.001, high: 0.1}\n")
    assert parsed("sweep", "--config", str(tmp_path / "a.yaml"))["lr"] == "0.001..0.1"


def test_a_stored_validation_cache_gives_way_to_a_share(tmp_path, monkeypatch):
    from losa_cache.sweep.engine.space import Choices

    (tmp_path / "v.zarr").mkdir()
    stored = SweepConfig(str(tmp_path), {"rank": Choices((2, 4))}, TrainConfig(), val_cache=str(tmp_path / "v.zarr"))
    stored.save(tmp_path)
    seen = {}

    def stop(cache, **options):
        seen.update(options)
        raise UserError("enough")

    import losa_cache.sweep.engine.run  # noqa: F401

    monkeypatch.setattr(sys.modules["losa_cache.sweep.engine.run"], "sweep", stop)
    for words, expected in (([], (str(tmp_path / "v.zarr"), 0.0)), (["--val-fraction", "0.2"], (None, 0.2))):
        done = CliRunner().invoke(app, ["sweep", "--config", str(tmp_path), *words])
        assert str(done.exception) == "enough", done.exception
        assert (seen.get("val_cache"), seen["config"].val_fraction) == expected


def test_what_excludes_each_other_is_refused_where_both_are_given(tmp_path):
    (tmp_path / "ids.txt").write_text("a\n")
    (tmp_path / "a.yaml").write_text(f"val_fraction: 0.2\nval_ids: {tmp_path / 'ids.txt'}\n")
    done = CliRunner().invoke(app, ["train", "--config", str(tmp_path / "a.yaml")])
    assert "leave out --val-fraction, which stands in the file of --config" in str(done.exception)
    (tmp_path / "x.zarr").mkdir()
    done = CliRunner().invoke(
        app, ["sweep", "--rank", "2,4", "--val-cache", str(tmp_path / "x.zarr"), "--val-fraction", "0.2"]
    )
    assert "--val-cache holds the samples to choose on: leave out --val-fraction" in str(done.exception)


def test_config_of_a_sweep_repeats_it(tmp_path):
    from losa_cache.sweep.engine.space import Choices, Range

    base = TrainConfig(epochs=3, head="last", limit=20)
    space = {"rank": Choices((2, 4)), "lr": Range(0.001, 0.1), "seed": Choices((0, 1))}
    config = SweepConfig(str(tmp_path), {"rank": space["rank"], "seed": space["seed"]}, base, trackers=["mlflow"])
    config.save(tmp_path)
    found = parsed("sweep", "--config", str(tmp_path))
    names = ("cache", "rank", "seeds", "epochs", "head", "limit", "tracker", "lr")
    assert [found[name] for name in names] == [str(tmp_path), "2,4", 2, 3, "last", 20, ["mlflow"], None]
    drawn = SweepConfig(str(tmp_path), {"lr": space["lr"]}, base, sampler="tpe", trials=3)
    drawn.save(tmp_path)
    found = parsed("sweep", "--config", str(tmp_path / "sweep.json"))
    assert [found[name] for name in ("lr", "sampler", "trials", "seeds")] == ["0.001..0.1", "tpe", 3, 1]
    replace(config, base=replace(base, warmup=0.5)).save(tmp_path)
    with pytest.raises(UserError, match="sets warmup as only losa_cache.sweep can"):
        parsed("sweep", "--config", str(tmp_path))


def test_callers_pass_the_same_config(tmp_path):
    keywords = {"precision": "float32", "limit": 7, "layers": [2, 4]}
    made = lc.extract(tiny_backbone(), tiny_samples(), out=tmp_path / "a.zarr", **keywords)
    config = ExtractConfig(tiny_backbone(), tiny_samples(), **keywords, out=str(tmp_path / "b.zarr"), batch_size=3)
    again = lc.extract(config=config)
    assert again.manifest.identity == made.manifest.identity
    assert lc.extract(config=config, limit=5, out=str(tmp_path / "c.zarr")).layout.samples == 5
    with pytest.raises(TypeError, match="limt"):
        lc.extract("vit_digits", "digits", limt=7)
    shown = inspect.signature(lc.extract).parameters
    assert (shown["data_dir"].default, shown["precision"].default, "options" in shown) == (None, "bfloat16", False)
    assert {"rank", "epochs", "online"} <= set(inspect.signature(lc.train).parameters)


def test_limit_of_training_means_the_same_with_the_backbone(tmp_path, monkeypatch):
    """It takes training samples, and leaves the held-out ones; --online-limit draws before any are held out."""
    monkeypatch.chdir(tmp_path)
    few = ["--epochs", "1", "--rank", "2", "--head", "last", "--val-fraction", "0.5", "--online-limit", "20"]
    for limit in ("4", "8"):
        run = f"r{limit}"
        done = CliRunner().invoke(
            app, ["train", "--online", *EXTRACT, *few, "--limit", limit, "--out", run], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "r4" / "config.json").read_text())
    assert (stored["train"]["limit"], stored["online"]["limit"]) == (4, 20)
    held_out = [lc.evaluate_run(tmp_path / run, device="cpu")["samples"] for run in ("r4", "r8")]
    assert held_out[0] == held_out[1]
    assert 4 < held_out[0] < 16  # about half of the 20

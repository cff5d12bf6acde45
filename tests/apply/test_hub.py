"""Publishing and fetching, against a server that answers huggingface_hub's own requests."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file

import losa_cache as lc
from losa_cache.apply.hub import fetch_adapter
from losa_cache.cli import main
from tests.earlier import as_earlier
from tests.hub_server import hub_server

TOKEN = "hf_secretsecretsecretsecretsecretsecr"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server() as (served, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)  # HF_ENDPOINT is read when the package is imported
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its attempts
        yield served


@pytest.fixture(scope="module")
def trained(tiny_original, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "run"
    return lc.train(tiny_original, rank=2, epochs=1, val_fraction=0.3, out=out, device="cpu").run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["losa-cache", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    return end.value.code or 0, said.out, said.err


def test_what_is_pushed_is_fetched_and_predicts_the_same(hub, run, tiny_cache, tmp_path):
    address = lc.push(run, "me/cats", license="apache-2.0")
    assert "/me/cats/commit/" in address
    files = hub.files("me/cats")
    assert set(files) == {"adapter.safetensors", "config.json", "metrics.json", "README.md"}
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert hub.messages == ["Publish an adapter of losa-cache"]
    assert str(tmp_path).encode() not in b"".join(files.values())
    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.model_name) == ("apache-2.0", "cats")
    assert "losa-cache predict hub:me/cats photos" in card.text

    ours, theirs = lc.load_adapter(run, device="cpu"), lc.load_adapter("hub:me/cats", device="cpu")
    assert theirs.config == ours.config
    for name, value in ours.adapter.trained_state().items():
        assert torch.equal(theirs.adapter.trained_state()[name], value)
    assert lc.evaluate_run("hub:me/cats", cache=tiny_cache.path, device="cpu")["samples"] == len(tiny_cache.samples)
    assert fetch_adapter("hub:me/cats").is_relative_to(tmp_path / "hub")


def test_only_the_files_of_an_adapter_are_fetched(hub, run):
    lc.push(run, "me/cats")
    hub.commit("me/cats", "main", {"evil.py": b"raise SystemExit", "weights.bin": b"0" * 100})
    assert {path.name for path in fetch_adapter("hub:me/cats").iterdir()} == {
        "adapter.safetensors", "config.json", "metrics.json", "README.md",
    }  # fmt: skip


def test_a_readme_that_is_there_stays(hub, run):
    lc.push(run, "me/cats")
    hub.commit("me/cats", "main", {"README.md": b"Our own words."})
    (run / "adapter" / "metrics.json").write_text("[]")
    lc.push(run, "me/cats", message="again")
    assert hub.files("me/cats")["README.md"] == b"Our own words."
    assert hub.files("me/cats")["metrics.json"] == b"[]"
    assert hub.messages[-1] == "again"


def test_a_readme_that_somebody_edited_is_published(hub, run):
    file = run / "adapter" / "README.md"
    file.write_text(file.read_text() + "\nBy hand.\n")
    lc.push(run, "me/cats")
    assert hub.files("me/cats")["README.md"].decode() == file.read_text()


def test_private_and_another_branch(hub, run):
    lc.push(run, "me/cats", private=True, revision="v2")
    assert hub.private == {"me/cats"}
    assert hub.files("me/cats") == {}
    assert load_file(fetch_adapter("hub:me/cats@v2") / "adapter.safetensors")
    sha = hub.branches["me/cats"]["v2"]
    assert fetch_adapter(f"hub:me/cats@{sha}").name == sha
    lc.push(run, "me/dogs")
    assert hub.private == {"me/cats"}


def test_offline_the_last_copy_serves(hub, run, monkeypatch):
    lc.push(run, "me/cats")
    folder = fetch_adapter("hub:me/cats")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert fetch_adapter("hub:me/cats") == folder
    with pytest.raises(lc.UserError, match=r"'hub:me/dogs' cannot be fetched: .*no earlier copy|forbids"):
        fetch_adapter("hub:me/dogs")
    with pytest.raises(lc.UserError, match="HF_HUB_OFFLINE|hub is reached"):
        lc.push(run, "me/cats")
    assert len(hub.asked) == asked


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "not there, or not for you to see; log in"),
        (403, "status 403; log in"),
        (404, "not there"),
        (500, "status 500; try again later"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence_without_the_token(status, message, hub, run):
    hub.create("me/cats", False)
    hub.status = status
    for use in (lambda: fetch_adapter("hub:me/cats"), lambda: lc.push(run, "me/cats")):
        with pytest.raises(lc.UserError, match=message) as refused:
            use()
        assert TOKEN not in str(refused.value)
        assert "\n" not in str(refused.value)


def test_what_is_not_there_is_said(hub, run, monkeypatch, capsys):
    hub.create("me/empty", False)
    for spec, message in (
        ("hub:me/nothing", "the repository is not there"),
        ("hub:me/empty", "holds no adapter of losa-cache: it has no adapter.safetensors"),
        ("hub:me/empty@v9", "it has no such revision"),
        ("hub:me", "'me' is no repository on the hub: write owner/name"),
        ("hub:../../etc", "is no repository"),
        ("hub:me/a--b", "is no repository"),
        ("hub:me/a..b", "is no repository"),
        ("hub:me/cats-", "is no repository"),
        ("hub:me/cats@", "'' is no revision"),
        ("hub:me/cats@../x y", "is no revision"),
    ):
        with pytest.raises(lc.UserError, match=message):
            lc.load_adapter(spec)
    code, _, said = command(monkeypatch, capsys, "push", run, "cats")
    assert code == 2
    assert said.endswith("error: 'cats' is no repository on the hub: write owner/name.\n")
    code, _, said = command(monkeypatch, capsys, "push", run.parent / "none", "me/cats")
    assert code == 2
    assert "holds no adapter: name the directory of a finished run" in said


def test_an_adapter_that_was_altered_on_the_hub_is_refused(hub, run):
    lc.push(run, "me/cats")
    config = json.loads(hub.files("me/cats")["config.json"])
    config["classes"][0] = "other"
    hub.commit("me/cats", "main", {"config.json": json.dumps(config).encode()})
    with pytest.raises(lc.UserError, match="cannot be loaded"):
        lc.load_adapter("hub:me/cats")


def test_a_download_that_ends_early_is_no_adapter(hub, run):
    lc.push(run, "me/cats")
    hub.torn = {"adapter.safetensors"}
    with pytest.raises(lc.UserError, match="'hub:me/cats' cannot be fetched"):
        fetch_adapter("hub:me/cats")
    hub.torn = set()
    assert load_file(fetch_adapter("hub:me/cats") / "adapter.safetensors")


def test_an_adapter_of_an_earlier_version_is_not_published(hub, run, tmp_path):
    shutil.copytree(run, tmp_path / "old")
    as_earlier(tmp_path / "old")
    with pytest.raises(lc.UserError, match="is of an earlier version"):
        lc.push(tmp_path / "old", "me/cats")
    assert hub.asked == []


def test_no_link_is_followed_and_nothing_broken_is_published(hub, run, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    card = run / "adapter" / "README.md"
    card.unlink()
    card.symlink_to(secret)
    with pytest.raises(lc.UserError, match=r"README\.md' is a link"):
        lc.push(run, "me/cats")
    card.unlink()
    (run / "adapter" / "adapter.safetensors").unlink()
    with pytest.raises(lc.UserError, match="cannot be loaded"):
        lc.push(run, "me/cats")
    assert hub.asked == []


def test_the_command_line_evaluates_what_is_on_the_hub(hub, run, tiny_cache, monkeypatch, capsys):
    lc.push(run, "me/cats")
    code, out, said = command(monkeypatch, capsys, "eval", "hub:me/cats", "--cache", str(tiny_cache.path), "--json")
    assert code == 0, said
    assert json.loads(out)["samples"] == len(tiny_cache.samples)


def test_the_command_publishes(hub, run, monkeypatch, capsys):
    code, out, said = command(monkeypatch, capsys, "push", run, "me/cats", "--revision", "v1", "--json")
    assert code == 0, said
    told = json.loads(out)
    assert told["adapter"] == "hub:me/cats@v1"
    assert hub.branches["me/cats"]["v1"] in told["commit"]


def test_without_the_package_a_sentence_names_the_extra(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert huggingface_hub
    with pytest.raises(lc.UserError, match=r"pip install 'losa-cache\[hub\]'"):
        lc.push(run, "me/cats")

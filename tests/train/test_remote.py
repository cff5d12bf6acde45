"""Training and evaluation from a server: the very figures of the local cache."""

import json

import pytest

import losa_cache as lc
from losa_cache.extract.extract import extract
from tests.conftest import losa_cache, tiny_backbone, tiny_samples
from tests.servers import BUCKET, ENVIRONMENT, http_server, upload

OPTIONS = {"rank": 2, "epochs": 3, "batch_size": 8, "device": "cpu", "val_fraction": 0.3}
FIGURES = ("train_loss", "val_loss", "val_top1", "val_top5")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "tiny.zarr"
    return extract(tiny_backbone(), tiny_samples(60), out=out, shard_bytes=13_000, batch_size=4)


@pytest.fixture(params=["s3", "http"])
def url(request, local):
    if request.param == "http":
        with http_server(local.path.parent) as address:
            yield f"{address}/tiny.zarr"
        return
    request.getfixturevalue("s3_environment")
    upload(local.path, f"s3://{BUCKET}/trained/tiny.zarr")
    yield f"s3://{BUCKET}/trained/tiny.zarr"


@pytest.mark.slow
def test_a_run_from_a_server_gives_the_figures_of_the_local_cache(url, local, tmp_path):
    seen = {"near": [], "far": []}
    near = lc.train(local.path, out=tmp_path / "near", report=seen["near"].append, **OPTIONS)
    far = lc.train(url, out=tmp_path / "far", report=seen["far"].append, **OPTIONS)
    figures = {run: [[m[name] for name in FIGURES] for m in epochs] for run, epochs in seen.items()}
    assert len(figures["far"]) == 3
    assert figures["far"] == figures["near"]
    adapters = [(run.run / "adapter/adapter.safetensors").read_bytes() for run in (near, far)]
    assert adapters[0] == adapters[1]
    assert json.loads((far.run / "config.json").read_text())["cache"] == url
    for file in far.run.rglob("*.json"):
        for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
            assert ENVIRONMENT[name] not in file.read_text()
    (far.run / "checkpoint.pt").unlink()
    assert lc.resume(far.run, device="cpu").metrics["train_loss"] == near.metrics["train_loss"]
    found = losa_cache("eval", str(near.run), "--cache", url, "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    on_server = json.loads(found.stdout)
    assert on_server.pop("on") == url
    expected = lc.evaluate_run(near.run, cache=local.path, device="cpu")
    assert expected.pop("on") == str(local.path)
    assert on_server == expected

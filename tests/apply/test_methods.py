"""Adapters that were trained inside the backbone, put to use: against the evaluation of their runs, image by image."""

from itertools import combinations

import onnxruntime
import pytest
import torch

import losa_cache as lc
from losa_cache.apply.export import onnx_file
from losa_cache.apply.export.config import SUFFIXES
from losa_cache.train.config import OnlineConfig
from losa_cache.train.evaluate_run import evaluated
from losa_cache.tuned.spec import METHODS
from tests.apply.serving import ask, png, serving
from tests.conftest import tiny_backbone, tiny_samples

COUNT = 17
METHODS_TRIED = {
    name: method
    for name, method in {
        "full": "full",
        "lora": "lora",
        "deep": "vpt:deep",
        "adapter": "adapter:houlsby",
        "ssf": "ssf",
        "bitfit": "bitfit",
    }.items()
    if method.partition(":")[0] in METHODS
}
ONLINE = OnlineConfig(backbone="tiny", dataset="tiny", precision="float32", workers=1)


def train(out, method=None, **options):
    objects = {"backbone": tiny_backbone(depth=2), "dataset": tiny_samples()}
    own = {"epochs": 2, "lr": 0.05, "batch_size": 8, "head": "last", "val_fraction": 0.0, "device": "cpu"}
    return lc.train(online=ONLINE, method=method, out=out, **objects, **own | options).run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of each method, and one of LoSA on the same backbone."""
    folder = tmp_path_factory.mktemp("methods")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSA_CACHE_HOME", str(folder / "home"))
        for name, method in METHODS_TRIED.items():
            train(folder / name, method)
        train(folder / "losa", rank=2)
    return folder


def load(folder, names=METHODS_TRIED):
    return {name: lc.load_adapter(folder / name, device="cpu") for name in names}


def tests():
    return tiny_samples(COUNT, split="test")


def pixels():
    samples, transform = tests(), tiny_backbone(depth=2).input.transform()
    return torch.stack([transform(samples.load(at)) for at in range(COUNT)])


def evaluation(run):
    """Probabilities of each test image, as ``losa-cache eval --split test`` has them, in the order of the images."""
    found = evaluated(run, split="test", device="cpu", backbone=tiny_backbone(depth=2), dataset=tests()).outcome
    by_id = dict(zip(found.ids, found.predictions.exp(), strict=True))
    return torch.stack([by_id[name] for name in tests().ids])


def test_one_model_gives_what_each_evaluation_does_beside_side_networks(trained):
    names = [*METHODS_TRIED, "losa"]
    frozen = tiny_backbone(depth=2)
    before = {name: value.clone() for name, value in frozen.model.state_dict().items()}
    model = lc.AdaptedModel(frozen, load(trained, names))
    found, vectors = model(pixels()), model.embed(pixels())
    alike = []
    for name in names:
        expected = evaluation(trained / name)
        assert torch.allclose(found[name].softmax(1), expected, atol=2e-5), name
        assert vectors[name].shape == (COUNT, 32)
        alike.append(expected)
    assert all((one - other).abs().max() > 1e-3 for one, other in combinations(alike, 2))  # each learned its own
    for name in names:
        alone = lc.AdaptedModel(frozen, load(trained, [name]))(pixels())[name]
        assert torch.allclose(found[name], alone, atol=1e-5)
    model.rename(names[0], "other")
    model.remove(names[1])
    assert torch.equal(model(pixels(), ["other"])["other"], found[names[0]])
    assert all(torch.equal(value, before[name]) for name, value in frozen.model.state_dict().items())


def test_predict_takes_images_and_refuses_a_cache(trained, tmp_path):
    samples = tests()
    for at, name in enumerate(samples.ids):
        samples.load(at).save(tmp_path / f"{name}.png")
    options = {"backbone": tiny_backbone(depth=2), "device": "cpu", "top_k": 3}
    found = lc.predict(load(trained), sorted(map(str, tmp_path.glob("*.png"))), **options)
    for name in METHODS_TRIED:
        expected = evaluation(trained / name)
        for at, entry in enumerate(found.predictions):
            own = {answer["class"]: answer["probability"] for answer in entry["predictions"][name]}
            assert [own[one] for one in samples.classes] == pytest.approx(expected[at].tolist(), abs=2e-5)
    cache = lc.extract(tiny_backbone(depth=2), tests(), precision="float32", device="cpu", out=tmp_path / "test.zarr")
    with pytest.raises(lc.UserError, match=r"adapter 'full' was trained inside the backbone \(full\), which cache .* "):
        lc.predict(load(trained, ["full"]), cache, device="cpu")


def test_a_server_answers_with_both_kinds(trained):
    names = [*METHODS_TRIED, "losa"]
    with serving(load(trained, names), backbone=tiny_backbone(depth=2)) as (port, _):
        for at in (0, 5):
            body = png(tests().load(at))
            status, answer, _ = ask(port, "/predict?top_k=3", body, headers={"content-type": "image/png"}.items())
            assert status == 200
            for name in names:
                own = {one["class"]: one["probability"] for one in answer["predictions"][name]}
                wanted = evaluation(trained / name)[at].tolist()
                assert [own[one] for one in tests().classes] == pytest.approx(wanted, abs=2e-5)


@pytest.mark.parametrize("name", METHODS_TRIED)
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_an_exported_file_gives_the_same(name, format, trained, tmp_path):
    if format == "onnx" and (onnx_file.release() < onnx_file.EARLIEST or name not in ("lora", "deep")):
        pytest.skip("ONNX is slow, and two stand for all")
    adapter = load(trained, [name])[name]
    out = tmp_path / f"model{SUFFIXES[format]}"
    told = lc.export(adapter, backbone=tiny_backbone(depth=2), format=format, out=out)
    if format == "onnx":
        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        (outputs,) = session.run(None, {"pixels": pixels().numpy()})
        found = torch.from_numpy(outputs)
    else:
        found = torch.export.load(out).module()(pixels())
    assert torch.allclose(found.softmax(1), evaluation(trained / name), atol=2e-5)
    assert told["adapter"]["method"]["name"] == adapter.method.name
    with pytest.raises(lc.UserError, match="was trained inside the backbone .*: leave --side-only out"):
        lc.export(adapter, side_only=True, format=format, out=tmp_path / f"side{SUFFIXES[format]}")


def test_other_weights_are_refused(trained):
    with pytest.raises(lc.UserError, match="does not fit the backbone: .*weights"):
        lc.AdaptedModel(tiny_backbone(seed=1, depth=2), load(trained, ["full"]))

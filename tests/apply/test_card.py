"""The model card of an adapter, read by huggingface_hub, and whatever names its data set and its classes have."""

import json

import pytest
import timm
from huggingface_hub import ModelCard
from markdown import markdown

import losa_cache as lc
from losa_cache.apply.card import card
from tests.conftest import tiny_cache, tiny_original  # noqa: F401

CONFIG = {
    "task": "classification",
    "classes": ["cat", "dog"],
    "pretrained": True,
    "adapter": {"side": "losa", "rank": 8},
    "layers": [1, 2],
    "tap": "block",
    "cache": {
        "fields": {
            "backbone": {"name": "vit_base_patch16_224.orig_in21k", "weights": "sha256:0123abcd"},
            "input": {
                "size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic",
                "crop_pct": 0.9, "crop_mode": "center", "frames": 1, "stride": 1,
            },
            "dataset": {"name": "cifar10", "split": "train"},
        }
    },
}  # fmt: skip
METRICS = [
    {"on": "cifar10", "split": "held out of training", "samples": 50, "loss": 0.5, "top1": 90.0, "top5": 100.0},
    {"on": "test.zarr", "split": "test", "samples": 1000, "loss": 0.25, "top1": 97.5, "top5": 99.9},
]


def changed(**fields):
    config = json.loads(json.dumps(CONFIG))
    config["cache"]["fields"] |= fields
    return config


def test_the_hub_reads_its_front_matter():
    found = ModelCard(card(CONFIG, METRICS, license="apache-2.0", repo="me/cats")).data
    assert found.library_name == "losa-cache"
    assert found.license == "apache-2.0"
    assert found.base_model == "timm/vit_base_patch16_224.orig_in21k"
    assert found.pipeline_tag == "image-classification"
    assert found.datasets == ["cifar10"]
    assert found.metrics == ["accuracy"]
    assert found.model_name == "cats"
    results = {(own.dataset_split, own.metric_name): own.metric_value for own in found.eval_results}
    assert results == {
        ("held out of training", "top-1"): 0.9, ("held out of training", "top-5"): 1.0,
        ("test", "top-1"): 0.975, ("test", "top-5"): 0.999,
    }  # fmt: skip


def test_the_backbone_is_named_as_timm_fetches_it():
    vits = [name for name in timm.list_pretrained() if name.startswith(("vit_", "deit", "beit", "eva", "flexivit"))]
    assert len(vits) > 200
    for name in vits:
        found = ModelCard(card(changed(backbone={"name": name, "weights": "sha256:0"}), [])).data.base_model
        hub = timm.get_pretrained_cfg(name).hf_hub_id
        assert found in (None, f"timm/{name}" if hub == "timm/" else hub), name
        assert found is not None or not str(hub).startswith("timm/"), name


def test_nothing_is_claimed_that_the_adapter_does_not_say():
    own = changed(dataset={"name": "folder", "split": "train"}) | {"pretrained": False, "task": "other"}
    own["task"] = "classification"
    found = ModelCard(card(own, [])).data
    assert (found.base_model, found.datasets, found.eval_results, found.license) == (None, None, None, None)
    assert ModelCard(card(changed(backbone={"name": "vit_digits", "weights": "sha256:0"}), [])).data.base_model is None
    clips = changed(input=CONFIG["cache"]["fields"]["input"] | {"frames": 32, "stride": 2})
    assert ModelCard(card(clips, [])).data.pipeline_tag == "video-classification"
    assert "random" in card(changed(backbone={"name": "vit_b", "weights": "random:sha256:0"}), [])


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>", "a\n---\nlicense: mit\n", "[x](javascript:alert(1))", "![x](http://x/y.png)",
        "`a`", "|", "# a",
        'a: "b', "\x1b[31m", "\u202eabc", "&lt;", "{{x}}", "- a\n- b", "é",
    ],
)  # fmt: skip
def test_names_from_outside_stay_text(name):
    config = changed(dataset={"name": name, "split": "train"}) | {"classes": [name, "dog"]}
    text = card(config, METRICS, repo="me/cats")
    found = ModelCard(text)
    assert found.data.datasets == [name]
    assert found.data.license is None
    assert found.data.eval_results[0].dataset_name == name
    body = found.text
    plain, named = (
        markdown(own, extensions=["tables"]) for own in (ModelCard(card(CONFIG, METRICS, repo="me/cats")).text, body)
    )
    tags = ("<script", "<img", "<a ", "<h1", "<code", "<li", "<td", "<hr")
    assert [named.count(tag) for tag in tags] == [plain.count(tag) for tag in tags]
    assert "\x1b" not in body
    assert "\u202e" not in body


def test_a_run_has_one_that_eval_brings_up_to_date_unless_somebody_edited_it(tiny_cache, tmp_path):  # noqa: F811
    run = lc.train(tiny_cache, rank=2, epochs=1, val_fraction=0.3, out=tmp_path / "run", device="cpu").run
    file = run / "adapter" / "README.md"
    assert [own.dataset_split for own in ModelCard.load(file).data.eval_results][:1] == ["held out of training"]
    before = file.read_text()
    assert str(tmp_path) not in before
    lc.evaluate_run(run, cache=tiny_cache.path, device="cpu")
    after = file.read_text()
    assert after != before
    assert {own.dataset_split for own in ModelCard.load(file).data.eval_results} == {"held out of training", "train"}
    file.write_text(after + "\nMy own words.\n")
    (run / "adapter" / "metrics.json").write_text("[]")
    lc.evaluate_run(run, cache=tiny_cache.path, device="cpu")
    assert file.read_text().endswith("\nMy own words.\n")

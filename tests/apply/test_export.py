"""Exported files give the outputs of losa-cache itself, whatever runs them; what cannot be exported leaves nothing."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

import losa_cache as lc
from losa_cache.apply.export import onnx_file
from losa_cache.apply.export.about import preprocessing
from losa_cache.apply.export.config import SUFFIXES
from losa_cache.apply.export.forms import Plain, traceable
from losa_cache.apply.export.sums import Sums
from losa_cache.backbone import Backbone
from losa_cache.backbone.vivit import inflate
from losa_cache.cli import app
from losa_cache.data.transforms import InputSpec
from losa_cache.points import ALL_LAYERS, EMBEDDING, LAST, tapped_points
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.spec import SIDES
from losa_cache.train.trained_adapter import TrainedAdapter, _points
from tests.conftest import tiny_backbone

CLASSES = ["a", "b", "c"]


def random_adapter(backbone, side="losa", *, head=LAST, tap="block", start="output", rank=3) -> TrainedAdapter:
    """An adapter of random weights for all layers of a backbone, as ``load_adapter`` gives it."""
    spec, layers = SIDES[side], list(range(1, backbone.depth + 1))
    fields = {
        "backbone": {"name": backbone.name, "weights": backbone.weights},
        "input": json.loads(json.dumps(asdict(backbone.input))),
        "tap": tap,
        "precision": "float32",
        "orientation": "upright",
    }
    arguments = {
        "side": side,
        "depth": 1 if spec.last_layer else len(tapped_points(tap, layers)),
        "tokens": backbone.tokens,
        "width": backbone.width,
        "rank": rank,
        "classes": len(CLASSES),
        "grid": list(backbone.grid) if len(backbone.grid) == 3 else None,
        "head": head,
    }
    config = {"adapter": arguments, "layers": layers, "tap": tap, "start": start, "classes": CLASSES}
    config["cache"] = {"identity": "none", "fields": fields}
    points = _points(config, layers, "all")
    arguments["points"] = len(points)
    adapter = Adapter(**arguments, tail=backbone.tail).eval()
    torch.manual_seed(3)
    for value in adapter.trained_state().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if value.ndim <= 1 else torch.randn_like(value) * 0.3)
    return TrainedAdapter(adapter, points, config).eval()


def tiny_vivit(depth: int = 2) -> Backbone:
    image = tiny_backbone(depth=depth)
    inflate(image.model, name="tiny", frames=4)
    return Backbone(image.model, name="tiny-video", random=True, input=replace(image.input, frames=4, stride=1))


def of_timm(name, size) -> Backbone:
    """One block of one of timm's architectures, of random weights."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0, img_size=size, depth=1)
    spec = InputSpec((3, size, size), (0.48, 0.45, 0.4), (0.22, 0.22, 0.23), "bicubic", 1.0, "center")
    return Backbone(model, name=name, random=True, input=spec)


def expected(adapter, backbone, pixels):
    with torch.inference_mode():
        blocks = backbone.outputs(pixels, adapter.points, compute=torch.float32)
        return adapter(blocks), blocks


def pixels_for(backbone, batch):
    seeded = torch.Generator().manual_seed(batch)
    return torch.randint(0, 256, (batch, *backbone.input.shape), dtype=torch.uint8, generator=seeded)


def in_onnxruntime(path, feed):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {name: value.numpy() for name, value in feed.items()})
    return torch.from_numpy(outputs), session.get_modelmeta().custom_metadata_map


def suffix(format):
    """How files of a format end; where torch is too old for ONNX, the test is skipped."""
    if format == "onnx" and onnx_file.release() < onnx_file.EARLIEST:
        pytest.skip("ONNX needs a later torch")
    return SUFFIXES[format]


def close(found, wanted):
    return (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("video", [False, True])
def test_traceable_forms_compute_what_adapters_do(side, video):
    backbone = tiny_vivit() if video else tiny_backbone(depth=2)
    ways = (
        [(LAST, "both", EMBEDDING), (ALL_LAYERS, "block", "output")]
        if SIDES[side].start
        else [(LAST, "both", "output")]
    )
    for head, tap, start in ways:
        own = random_adapter(backbone, side, head=head, tap=tap, start=start)
        adapter = own.adapter.double()
        torch.manual_seed(5)
        blocks = [torch.randn(2, backbone.tokens, backbone.width, dtype=torch.float64) for _ in own.points]
        with torch.no_grad():
            torch.testing.assert_close(traceable(adapter)(blocks), adapter(blocks), rtol=1e-10, atol=1e-10)


def test_many_columns_are_exported_as_the_equations_stand(monkeypatch):
    adapter = random_adapter(tiny_backbone(depth=2)).adapter
    assert isinstance(traceable(adapter).side, Sums)
    monkeypatch.setattr("losa_cache.apply.export.forms.MOST_COLUMNS", 5)
    plain = traceable(adapter)
    assert isinstance(plain.side, Plain)
    blocks = [torch.randn(2, 5, 32) for _ in range(2)]
    torch.testing.assert_close(plain(blocks), adapter(blocks))


@pytest.mark.parametrize(
    ("make", "side", "options", "format"),
    [
        (lambda: tiny_backbone(depth=2), "losa", {"head": ALL_LAYERS}, "onnx"),
        pytest.param(lambda: tiny_vivit(1), "losa", {"tap": "both"}, "torch", marks=pytest.mark.slow),
        pytest.param(
            lambda: of_timm("vit_small_patch14_reg4_dinov2", 28), "linear", {}, "torch", marks=pytest.mark.slow
        ),
        pytest.param(
            lambda: of_timm("vit_small_plus_patch16_dinov3", 32), "attentive", {}, "onnx", marks=pytest.mark.slow
        ),
    ],
)
def test_a_file_with_the_backbone_gives_our_outputs_from_pixels(make, side, options, format, tmp_path):
    backbone = make()
    adapter = random_adapter(backbone, side, **options)
    out = tmp_path / f"file{suffix(format)}"
    said = lc.export(adapter, backbone=backbone, format=format, out=str(out))
    assert list(tmp_path.iterdir()) == [out]
    assert said["files"] == [str(out)]
    pixels = pixels_for(backbone, 5)
    wanted, _ = expected(adapter, backbone, pixels)
    if format == "onnx":
        found, about = in_onnxruntime(out, {"pixels": pixels})
        about = {name: json.loads(text) for name, text in about.items()}
    else:
        extra = {"losa_cache.json": ""}
        found = torch.export.load(out, extra_files=extra).module()(pixels)
        about = json.loads(extra["losa_cache.json"])
    assert close(found, wanted)
    assert about["classes"] == CLASSES
    assert about["inputs"] == {"pixels": {"dtype": "uint8", "shape": ["batch", *backbone.input.shape]}}
    assert about["backbone"] == {"name": backbone.name, "weights": backbone.weights}
    assert about["preprocessing"]["orientation"] == "upright"
    assert about["adapter"]["side"] == side
    assert about["adapter"]["points"] == adapter.points


@pytest.mark.parametrize(
    ("side", "options", "format"),
    [
        ("losa", {"start": EMBEDDING}, "torch"),
        pytest.param("mlp", {}, "torch", marks=pytest.mark.slow),  # how all are computed is tested above
        pytest.param("ladder", {}, "onnx", marks=pytest.mark.slow),
        pytest.param("fusion", {}, "onnx", marks=pytest.mark.slow),
    ],
)
def test_a_file_of_the_adapter_alone_takes_block_outputs_by_their_names(side, options, format, tmp_path):
    backbone = tiny_backbone(depth=2)
    adapter = random_adapter(backbone, side, **options)
    out = tmp_path / f"side{suffix(format)}"
    said = lc.export(adapter, side_only=True, format=format, out=str(out))
    wanted, blocks = expected(adapter, backbone, pixels_for(backbone, 4))
    if format == "onnx":
        found, _ = in_onnxruntime(out, dict(zip(adapter.points, blocks, strict=True)))
    else:
        found = torch.export.load(out).module()(*blocks)
    assert close(found, wanted)
    assert list(said["inputs"]) == ["block.1", "block.2", *(["embedding"] if options.get("start") else [])]
    assert said["preprocessing"] is None


@pytest.mark.slow
def test_weights_too_large_for_one_file_of_onnx_lie_in_a_second(tmp_path, monkeypatch):
    backbone = tiny_backbone(depth=2)
    adapter = random_adapter(backbone, "linear")
    monkeypatch.setattr(onnx_file, "LARGEST", 0)
    said = lc.export(adapter, side_only=True, out=str(tmp_path / f"side{suffix('onnx')}"))
    assert said["files"] == [str(tmp_path / "side.onnx"), str(tmp_path / "side.onnx.data")]
    assert said["bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    moved = shutil.move(tmp_path, tmp_path.with_name("moved"))
    wanted, blocks = expected(adapter, backbone, pixels_for(backbone, 4))
    assert close(in_onnxruntime(Path(moved, "side.onnx"), {"block.2": blocks[0]})[0], wanted)


@torch.library.custom_op("losa_cache_tests::unknown", mutates_args=())
def unknown(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@unknown.register_fake
def _(x):
    return torch.empty_like(x)


def changed(change) -> Backbone:
    """A backbone whose block ends in something else."""
    backbone = tiny_backbone(depth=1)
    mlp = backbone.model.blocks[0].mlp
    before = mlp.forward
    mlp.forward = lambda x: change(before(x))
    return backbone


@pytest.mark.parametrize(
    ("change", "format", "message"),
    [
        pytest.param(
            unknown,
            "onnx",
            r"^onnx has no operator for losa_cache_tests.unknown, which the model uses: .*file.onnx.log'",
            marks=pytest.mark.slow,
        ),
        (lambda x: x * float(x.sum()), "torch", r"^the model cannot be exported as torch \(.*file.pt2.log'"),
    ],
)
def test_what_an_exporter_cannot_do_is_a_sentence_and_a_log(change, format, message, tmp_path, capfd):
    backbone = changed(change)
    out = tmp_path / f"file{suffix(format)}"
    with pytest.raises(lc.UserError, match=message) as refused:
        lc.export(random_adapter(backbone, "linear"), backbone=backbone, format=format, out=str(out))
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == [f"{out.name}.log"]
    assert "Traceback" in (tmp_path / f"{out.name}.log").read_text()
    assert capfd.readouterr() == ("", "")


def test_other_outputs_than_ours_are_refused_with_the_difference(tmp_path):
    backbone = changed(lambda x: x * 1.1 if torch.compiler.is_exporting() else x)
    with pytest.raises(
        lc.UserError, match=r"gives other outputs than losa-cache, by 0\.\d+ of the largest one on noise"
    ):
        lc.export(random_adapter(backbone, "linear"), backbone=backbone, format="torch", out=str(tmp_path / "file.pt2"))
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_or_cannot_be_written_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    adapter = random_adapter(tiny_backbone(depth=2))
    with pytest.raises(lc.UserError, match=r"does not fit the backbone: backbone"):
        lc.export(adapter, backbone=tiny_backbone(1, depth=2), out=str(tmp_path / "file.onnx"))
    with pytest.raises(lc.UserError, match=r"unknown format 'tflite': choose one of onnx, torch"):
        lc.ExportConfig(out="file.onnx", format="tflite")
    with pytest.raises(lc.UserError, match=r"out is 'file.onnx': name a file that ends in \.pt2"):
        lc.ExportConfig(out="file.onnx", format="torch")
    with pytest.raises(lc.UserError, match="--side-only leaves the backbone out: leave out --weights"):
        lc.ExportConfig(out="file.onnx", side_only=True, weights="file.pth")
    (tmp_path / "there.onnx").symlink_to(tmp_path / "nowhere")
    with pytest.raises(lc.UserError, match=r"there.onnx' exists: choose another --out"):
        lc.export(adapter, side_only=True, out=str(tmp_path / "there.onnx"))
    monkeypatch.setattr(torch, "__version__", "2.8.1+cpu")
    with pytest.raises(lc.UserError, match=r"needs torch 2\.9 or later, and this is 2\.8\.1\+cpu: .*--format torch"):
        lc.export(adapter, side_only=True, out=str(tmp_path / "file.onnx"))
    done = CliRunner().invoke(app, ["export", str(tmp_path), "--out", str(tmp_path / "file.onnx")])
    assert isinstance(done.exception, lc.UserError)
    assert "is no adapter" in str(done.exception)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(37, 61), (61, 37), (16, 16), (200, 20)])
def test_the_stated_steps_give_the_pixels_of_extraction(crop_mode, size):
    spec = InputSpec((3, 16, 16), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, crop_mode)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    steps = preprocessing(spec, {"orientation": "upright"})
    image, (high, wide) = picture, steps["size"]
    if steps["resize"] == "stretch":
        image = image.resize((wide, high), Image.Resampling.BICUBIC)
    else:
        choose = {"cover": max, "contain": min}[steps["resize"]]
        scale = choose(wide / image.width, high / image.height)
        around = int if steps["resize"] == "cover" else round
        size = [around(length * scale + 1e-9) for length in image.size]
        image = image.resize(size, Image.Resampling[steps["interpolation"].upper()])
    height, width = steps["crop"]
    ground = Image.new(steps["mode"], (width, height), tuple(steps["fill"]))
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    ground.paste(image, (-left, -top))
    assert np.array_equal(np.asarray(ground).transpose(2, 0, 1), spec.transform()(picture).numpy())

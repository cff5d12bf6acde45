"""Files that are given for weights: what fits loads as it is, what does not is told in one sentence."""

import io
import json
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save, save_file
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer

from losa_cache.backbone import load_backbone
from losa_cache.backbone.kin import nearest_architecture
from losa_cache.backbone.names import vit_digits
from losa_cache.backbone.weights import load_file, map_file, weights_hash
from losa_cache.errors import UserError


def tensors(**options):
    """A random trunk: vit_digits, unless told otherwise."""
    torch.manual_seed(3)
    shape = {"img_size": 16, "patch_size": 2, "embed_dim": 96, "depth": 8, "num_heads": 3, "num_classes": 0}
    model = VisionTransformer(**(shape | options))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model.state_dict()


@pytest.fixture(scope="module")
def trunk():
    return tensors()


@pytest.fixture(scope="module")
def right(trunk):
    model = vit_digits()
    model.load_state_dict(trunk)
    return f"sha256:{weights_hash(model)}"


@pytest.fixture(scope="module")
def model():
    """One for all files that are refused: they are, before anything is loaded into it."""
    return vit_digits()


@pytest.mark.parametrize("load", [load_file, map_file])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_values": 1e-5}, r"no blocks\.0\.ls1\.gamma.* and 13 more; its trunk is 8 blocks .* with LayerScale"),
        ({"depth": 12}, r"no blocks\.10\..*; its trunk is 12 blocks of 96 channels, the backbone's 8 blocks"),
        ({"depth": 4}, r"lacks 48 of its tensors \(blocks\.4\.norm1.*; its trunk is 4 blocks"),
        ({"embed_dim": 48}, r"48 there and 96 here, for one; its trunk is 8 blocks of 48 channels"),
        ({"reg_tokens": 4}, r"no reg_token; .* with register tokens"),
        ({"qk_norm": True}, r"no blocks\.0\.attn\.k_norm"),
        ({"mlp_layer": SwiGLUPacked}, r"blocks\.0\.mlp\.fc2\.weight is 96 x 192 there and 96 x 384 here"),
        ({"pre_norm": True}, "no norm_pre"),
        ({"global_pool": "avg", "fc_norm": True}, "no fc_norm"),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, "lacks 1 of its tensors .cls_token"),
        ({"patch_size": 4, "img_size": 32}, "its patches are 4 x 4 pixels, the backbone's 2 x 2"),
        ({"in_chans": 1}, "96 x 1 x 2 x 2 there and 96 x 3 x 2 x 2 here"),
    ],
)
def test_another_architecture_is_refused(options, message, load, model, tmp_path):
    save_file(tensors(**options), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=message) as told:
        load(model, tmp_path / "w.safetensors")
    assert "\n" not in str(told.value)


def test_a_second_class_token_is_refused(trunk, model, tmp_path):
    distilled = trunk | {"dist_token": torch.ones(1, 1, 96), "pos_embed": torch.ones(1, 66, 96)}
    save_file(distilled, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="no dist_token"):
        load_file(model, tmp_path / "w.safetensors")


def test_the_architecture_is_named_where_tensors_say_it():
    name = "vit_tiny_patch16_384"
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0).state_dict()
    assert nearest_architecture({key: tuple(tensor.shape) for key, tensor in state.items()}) == name
    assert nearest_architecture({}) == ""


def below(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPED = {
    "module": lambda own, _: {"state_dict": below("module.model.", own)},
    "averages": lambda own, other: {"state_dict": other, "state_dict_ema": own, "epoch": 3},
    "dino": lambda own, other: {
        "student": below("module.backbone.", other),
        "teacher": below("backbone.", own) | {"head.mlp.0.weight": torch.ones(3, 3)},
    },
    "dinov2": lambda own, other: {"model": below("student.backbone.", other) | below("teacher.backbone.", own)},
    "mae": lambda own, _: {
        "model": own | {"mask_token": torch.ones(1, 1, 9), "decoder_blocks.0.norm1.weight": torch.ones(9)},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
    },
    "heads": lambda own, _: own | {"head.weight": torch.ones(3, 96), "projector.0.weight": torch.ones(9, 96)},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_what_training_wraps_around_a_trunk_is_taken_off(kind, trunk, right, tmp_path):
    other = {name: tensor + 1 for name, tensor in trunk.items()}
    torch.save(WRAPPED[kind](trunk, other), tmp_path / "w.pth")
    assert load_backbone("vit_digits", weights=tmp_path / "w.pth").weights == right


def test_one_of_two_trunks_is_not_guessed(trunk, model, tmp_path):
    save_file(below("x.", trunk) | below("y.", {k: t.clone() for k, t in trunk.items()}), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"several trunks \(x\., y\.\)"):
        load_file(model, tmp_path / "w.safetensors")


@pytest.mark.parametrize("load", [load_file, map_file])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("blocks.3.mlp.fc1.weight", torch.full((384, 96), torch.nan), r"36864 values in blocks\.3\.mlp\.fc1\.weight"),
        ("norm.bias", torch.tensor([torch.inf, *[0.0] * 94, -torch.inf]), r"2 values in norm\.bias that are not"),
        ("blocks.7.mlp.fc2.weight", torch.zeros(96, 384), r"nothing but zeros in blocks\.7\.mlp\.fc2\.weight"),
        ("blocks.0.attn.qkv.weight", torch.ones(288, 96, dtype=torch.int8), "is stored as int8"),
        ("norm.weight", torch.ones(96).to(torch.float8_e4m3fn), "is stored as float8_e4m3fn"),
    ],
)
def test_values_that_are_no_weights_are_refused(name, value, message, load, trunk, tmp_path):
    save_file(trunk | {name: value}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=message):
        load(vit_digits(), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("norm.bias", torch.ones(96).to_sparse()),
        ("norm.bias", torch.ones(96, device="meta")),
        ("pos_embed", torch.zeros(1).expand(1, 10**12 + 1, 96)),  # a few bytes that would be resampled
    ],
)
def test_tensors_without_their_values_are_refused(name, value, trunk, model, tmp_path):
    torch.save(trunk | {name: value}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=f"every value of '{name}'"):
        load_file(model, tmp_path / "w.pth")


def zipped(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def in_tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("w.pth"))
    return buffer.getvalue()


def header(entries, content=b""):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + content


def one(**entry):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry}


def array_header(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


NO_WEIGHTS = {
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        "is a Git LFS pointer, not weights",
    ),
    "page": (b"<!doctype html><title>404</title>", "is a web page, not weights: download the file itself"),
    "page behind blanks": (b"\xef\xbb\xbf\n <HTML>", "is a web page"),
    "answer": (b"<?xml version='1.0'?><Error>NoSuchKey</Error>", "is an XML page"),
    "json": (b'{"error": "not found"}', "is JSON text"),
    "empty": (b"", "is empty"),
    "zeros": (bytes(999), "is zeros"),
    "gzip": (b"\x1f\x8b\x08\x00rest", "is a gzip archive, not weights: unpack it"),
    "tar": (in_tar(), "is a tar archive"),
    "zip": (zipped("w.pth", b"x"), "is a zip archive, not weights: unpack it"),
    "torchscript": (zipped("w/constants.pkl", b"x"), "is a TorchScript program"),
    "tensorflow": (b"abc" * 30 + bytes.fromhex("57fb808b247547db"), "is a TensorFlow checkpoint"),
    "keras": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "noise": (b"\x01\x02\x03" * 99, "is no checkpoint of a known form"),
    "long header": (struct.pack("<Q", 2**62) + b"{", "is no checkpoint"),
    "cut header": (header(one())[:20], "is cut off in its header"),
    "cut": (header(one(), bytes(7)), "is cut off"),
    "huge": (header(one(shape=[10**15], data_offsets=[0, 4 * 10**15]), bytes(8)), "is cut off"),
    "overlap": (header(one() | {"b": one()["a"]}, bytes(8)), "invalid offset"),
    "negative": (header(one(shape=[-2]), bytes(8)), "cannot be read"),
    "wrong shape": (header(one(shape=[10**15]), bytes(8)), "cannot be read"),
    "deep": (struct.pack("<Q", 10**5) + b'{"a":' + b"[" * 10**5, "is damaged in its header"),
    "other arrays": (zipped("a.npy", array_header((0,))), "arrays of other names than a ViT's JAX checkpoint"),
    "array of 1e15": (zipped("embedding/kernel.npy", array_header((10**15,))), "0 bytes for 1000000000000000"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_what_is_no_checkpoint_is_called_by_its_name(kind, suffix, model, tmp_path):
    content, message = NO_WEIGHTS[kind]
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as told:
        load_file(model, path)
    assert message in str(told.value)
    assert str(path) in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_what_is_no_file_is_called_by_its_name(model, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path, message in (
        (tmp_path, "are a folder"),
        (tmp_path / "pipe", "are a named pipe"),
        (Path("/dev/zero"), "are a device"),
        (tmp_path / "loop", "symbolic links"),
        (Path("a" * 300), "too long"),
        (tmp_path / "pipe" / "w.pth", "there is no weights file"),
    ):
        with pytest.raises(UserError, match=message):
            load_file(model, path)


def test_a_flipped_bit_and_a_cut_are_noticed(trunk, model, tmp_path):
    """In a zip archive by its checksums, which torch does not compare; in safetensors only a cut can be seen."""
    torch.save(trunk, tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    middle = len(whole) // 2
    for content in (whole[:middle], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(UserError, match=r"damaged.*: download it again"):
            load_file(model, tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_bytes(save(trunk)[:-1])
    with pytest.raises(UserError, match="is cut off"):
        load_file(model, tmp_path / "w.safetensors")


def test_a_pickled_module_is_named_and_not_run(model, tmp_path):
    torch.save(model, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"pickled objects \(timm\..*: save the model's state_dict\(\)"):
        load_file(model, tmp_path / "w.pth")


def jax_arrays(state, depth):
    """A trunk of one head as Google's JAX code names and lays it out."""
    found = {
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for at in range(depth):
        ours, theirs = f"blocks.{at}.", f"Transformer/encoderblock_{at}/"
        for norm, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            found[f"{theirs}{name}/scale"] = state[f"{ours}{norm}.weight"]
            found[f"{theirs}{name}/bias"] = state[f"{ours}{norm}.bias"]
        attention = theirs + "MultiHeadDotProductAttention_1/"
        for part, name in enumerate(("query", "key", "value")):
            found[f"{attention}{name}/kernel"] = state[ours + "attn.qkv.weight"].chunk(3)[part].T[:, None]
            found[f"{attention}{name}/bias"] = state[ours + "attn.qkv.bias"].chunk(3)[part][None]
        found[f"{attention}out/kernel"] = state[ours + "attn.proj.weight"].T[None]
        found[f"{attention}out/bias"] = state[ours + "attn.proj.bias"]
        for layer in (0, 1):
            found[f"{theirs}MlpBlock_3/Dense_{layer}/kernel"] = state[f"{ours}mlp.fc{layer + 1}.weight"].T
            found[f"{theirs}MlpBlock_3/Dense_{layer}/bias"] = state[f"{ours}mlp.fc{layer + 1}.bias"]
    return {name: tensor.numpy() for name, tensor in found.items()}


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"depth": 10}, {}, r"it has a block 9 \(Transformer/encoderblock_8/.*\), the backbone has 8"),
        ({"depth": 6}, {}, "lacks .*encoderblock_6"),
        ({"embed_dim": 48}, {}, "to tokens of 48 channels; the backbone's are 2 x 2 x 3, to 96"),
        ({"patch_size": 4, "img_size": 32}, {}, "its patches are 4 x 4 x 3 values"),
        ({"in_chans": 1}, {}, "its patches are 2 x 2 x 1 values"),
        (
            {},
            {"Transformer/encoderblock_0/LayerNorm_0/scale": np.ones(1, np.float32)},
            "is 1, for blocks.0.norm1.weight",
        ),
        ({}, {"Transformer/encoderblock_0/ls1/scale": np.ones(96, np.float32)}, "an array that the backbone has not"),
        ({}, {"Transformer/encoderblock_0/LayerNorm_0/bias": np.ones(96, np.int64)}, "stored as int64"),
        ({}, {"Transformer/encoder_norm/bias": np.full(96, np.nan, np.float32)}, "norm.bias"),
    ],
)
def test_a_jax_checkpoint_of_another_architecture_is_refused(options, change, message, tmp_path):
    """timm takes the blocks that it needs, and stretches patches: silence, where it is left alone."""
    shape = {"depth": 8} | options
    np.savez(tmp_path / "w.npz", **(jax_arrays(tensors(**shape), shape["depth"]) | change))
    with pytest.raises(UserError, match=message):
        load_file(vit_digits(), tmp_path / "w.npz")


def test_a_jax_checkpoint_leaves_nothing_unset(tmp_path):
    np.savez(tmp_path / "w.npz", **jax_arrays(tensors(), 8))
    with_scales = VisionTransformer(
        img_size=16, patch_size=2, embed_dim=96, depth=8, num_heads=1, num_classes=0, init_values=1e-5
    )
    with pytest.raises(UserError, match=r"no values for 16 of its tensors \(blocks\.0\.ls1\.gamma"):
        load_file(with_scales, tmp_path / "w.npz")

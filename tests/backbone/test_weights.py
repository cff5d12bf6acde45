"""Checkpoint files: nothing stays unset, nothing is run, and the hash follows the numbers."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from losa_cache.backbone import load_backbone
from losa_cache.backbone.names import DIGITS_WEIGHTS, vit_digits
from losa_cache.backbone.weights import load_file, weights_hash
from losa_cache.errors import UserError


@pytest.fixture
def donor():
    torch.manual_seed(5)
    return vit_digits()


@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped pth"])
def test_files_load_into_the_same_weights(form, donor, tmp_path):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(donor.state_dict(), path)
    else:
        torch.save({"model": donor.state_dict()} if form.startswith("wrapped") else donor.state_dict(), path)
    backbone = load_backbone("vit_digits", weights=path)
    assert backbone.weights == f"sha256:{weights_hash(donor)}"


def test_a_classifier_in_the_file_is_ignored(donor, tmp_path):
    state = donor.state_dict() | {"head.weight": torch.zeros(7, 96), "head.bias": torch.zeros(7)}
    save_file(state, tmp_path / "w.safetensors")
    assert load_backbone("vit_digits", weights=tmp_path / "w.safetensors").weights == f"sha256:{weights_hash(donor)}"


def test_original_npz_files_load(tmp_path):
    """A JAX checkpoint as Google published them, written here from a torch model by the inverse mapping."""
    import numpy as np

    torch.manual_seed(1)
    donor = VisionTransformer(img_size=16, patch_size=2, embed_dim=96, depth=8, num_heads=3, num_classes=0)
    state = {k: v.numpy() for k, v in donor.state_dict().items()}
    out = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for i in range(8):
        b, t = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        a = t + "MultiHeadDotProductAttention_1/"
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            out[t + theirs + "/scale"], out[t + theirs + "/bias"] = (
                state[b + ours + ".weight"],
                state[b + ours + ".bias"],
            )
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(96 * part, 96 * (part + 1))
            out[a + name + "/kernel"] = state[b + "attn.qkv.weight"][rows].T.reshape(96, 3, 32)
            out[a + name + "/bias"] = state[b + "attn.qkv.bias"][rows].reshape(3, 32)
        out[a + "out/kernel"] = state[b + "attn.proj.weight"].T.reshape(3, 32, 96)
        out[a + "out/bias"] = state[b + "attn.proj.bias"]
        for layer in (0, 1):
            m = t + f"MlpBlock_3/Dense_{layer}/"
            out[m + "kernel"] = state[b + f"mlp.fc{layer + 1}.weight"].T
            out[m + "bias"] = state[b + f"mlp.fc{layer + 1}.bias"]
    np.savez(tmp_path / "w.npz", **out)
    assert load_backbone("vit_digits", weights=tmp_path / "w.npz").weights == f"sha256:{weights_hash(donor)}"


def test_the_position_table_is_resampled_to_the_input(donor, tmp_path):
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    backbone = load_backbone("vit_digits", weights=tmp_path / "w.safetensors", img_size=32)
    assert backbone.model.pos_embed.shape == (1, 257, 96)


def test_a_missing_tensor_is_an_error(donor, tmp_path):
    state = donor.state_dict()
    del state["blocks.3.mlp.fc1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"1 of its tensors .*blocks\.3\.mlp\.fc1\.weight"):
        load_backbone("vit_digits", weights=tmp_path / "w.safetensors")


def test_a_tensor_of_another_shape_is_an_error(donor, tmp_path):
    save_file(donor.state_dict() | {"norm.weight": torch.zeros(95)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="does not fit"):
        load_backbone("vit_digits", weights=tmp_path / "w.safetensors")


class Bomb:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def test_pickled_code_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    with open(tmp_path / "w.pth", "wb") as file:
        pickle.dump({"model": Bomb(marker)}, file, protocol=2)
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone("vit_digits", weights=tmp_path / "w.pth")
    assert not marker.exists()


def test_a_missing_file_says_so():
    with pytest.raises(UserError, match="no weights file 'nowhere.pth'"):
        load_file(vit_digits(), Path("nowhere.pth"))


def test_the_hash_follows_one_bit(donor):
    before = weights_hash(donor)
    with torch.no_grad():
        donor.norm.bias[0] += 2.0**-20
    assert weights_hash(donor) != before


def test_the_shipped_weights_are_small():
    assert DIGITS_WEIGHTS.stat().st_size < 2_000_000

"""Read the frozen tail (final norm and pooling) off a timm trunk, as ``losa_cache.sidenet.tail`` rebuilds it."""

from typing import Any

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from losa_cache.errors import UserError
from losa_cache.sidenet.tail import ACTIVATIONS, POOLS, FrozenTail


def read_tail(model: nn.Module, *, width: int, prefix_tokens: int) -> FrozenTail:
    """Copy final norm, pooling and post-pooling norm of a timm ViT.

    A trunk that names no pooling is averaged over its patch tokens (*not from the paper*).

    Raises:
        UserError: for a tail of a kind that the protocol does not describe.
    """
    attention = getattr(model, "attn_pool", None)
    pool = "map" if attention is not None else (getattr(model, "global_pool", "") or "avg")
    if pool not in POOLS:
        raise UserError(f"this backbone pools by {pool!r}, which losa-cache cannot rebuild without it.")
    norm, fc_norm = getattr(model, "norm", nn.Identity()), getattr(model, "fc_norm", nn.Identity())
    config: dict[str, Any] = {
        "width": width,
        "prefix_tokens": prefix_tokens,
        "pool": pool,
        "class_tokens": 2 if hasattr(model, "head_dist") else 1,  # a distilled DeiT averages CLS and DIST
        # trunks without the option (EVA) feed every token to attention pooling, and only patches to the others
        "pool_prefix": bool(getattr(model, "pool_include_prefix", pool == "map")),
        "norm": _describe_norm(norm),
        "fc_norm": _describe_norm(fc_norm),
    }
    tensors = _named("norm", norm) | _named("fc_norm", fc_norm)
    if attention is not None:
        config["map"] = _describe_attention(attention)
        tensors |= _named("attn_pool", attention)
    try:
        return FrozenTail(config, tensors)
    except RuntimeError as error:
        raise UserError(f"this backbone's tail has tensors that losa-cache does not know ({error}).") from error


def _named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": _brought(value) for name, value in module.state_dict().items()}


def _brought(value: Tensor) -> Tensor:
    """Bring a tensor to the CPU, in float32; one on ``meta`` has nothing to bring."""
    value = value.detach().float()
    return value if value.is_meta else value.cpu()


def _describe_norm(norm: nn.Module) -> dict[str, Any]:
    if isinstance(norm, nn.Identity):
        return {"type": "identity"}
    name = type(norm).__name__.lower()
    kind = "rmsnorm" if "rmsnorm" in name else "layernorm" if isinstance(norm, nn.LayerNorm) else None
    if kind is None:
        raise UserError(f"this backbone ends in a {type(norm).__name__}, which losa-cache cannot rebuild without it.")
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    return {"type": kind, "eps": norm.eps, "affine": weight is not None, "bias": bias is not None}


def _describe_attention(pool: nn.Module) -> dict[str, Any]:
    if not isinstance(pool, AttentionPoolLatent) or pool.mlp is None:
        raise UserError(f"this backbone pools by a {type(pool).__name__}, which losa-cache cannot rebuild without it.")
    return {
        "heads": pool.num_heads,
        "latents": pool.latent_len,
        "positions": 0 if pool.pos_embed is None else pool.pos_embed.shape[0],
        "bias": pool.kv.bias is not None,
        "q": not isinstance(pool.q, nn.Identity),
        "qk_norm": _describe_norm(pool.q_norm),
        "norm": _describe_norm(pool.norm),
        "hidden": pool.mlp.fc1.out_features,
        "activation": _activation_name(pool.mlp.act),
        "reduce": "avg" if pool.pool == "avg" else "token",
    }


def _activation_name(activation: nn.Module) -> str:
    """Name an activation by what it computes: timm has several classes for one function."""
    x = torch.linspace(-4, 4, 33)
    for name, function in ACTIVATIONS.items():
        if torch.allclose(activation(x), function(x), atol=1e-6):
            return name
    raise UserError(f"this backbone's pooling uses a {type(activation).__name__}, which losa-cache does not know.")

"""The frozen tail: what the backbone does between its last block and its classifier.

Stage two never loads the backbone, so the final norm and the pooling travel in the cache as a small JSON config and a
few tensors, and are rebuilt here in plain torch. ``losa_cache.backbone`` reads them off a timm model.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losa_cache.sidenet.readout import First, Mean, Readout, Whole

POOLS = ("token", "avg", "max", "avgmax", "map")
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}


def build_norm(config: Mapping[str, Any], width: int) -> nn.Module:
    """Build the norm of a config: ``{"type": "identity" | "layernorm" | "rmsnorm", "eps", "affine", "bias"}``."""
    match config["type"]:
        case "identity":
            return nn.Identity()
        case "layernorm":
            return nn.LayerNorm(width, eps=config["eps"], elementwise_affine=config["affine"], bias=config["bias"])
        case "rmsnorm":
            return nn.RMSNorm(width, eps=config["eps"], elementwise_affine=config["affine"])
    raise ValueError(f"unknown norm {config['type']!r} in the tail's config.")


class LatentPool(nn.Module):
    """Attention pooling with a learned query (MAP, as in SigLIP): ``(batch, tokens, width)`` to ``(batch, width)``.

    Parameter names are those of timm's ``AttentionPoolLatent``, so its tensors load as they are.
    """

    def __init__(self, config: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.heads: int = config["heads"]
        self.reduce: str = config["reduce"]
        self.activation = ACTIVATIONS[config["activation"]]
        self.latent = nn.Parameter(torch.zeros(1, config["latents"], width))
        self.pos_embed = nn.Parameter(torch.zeros(config["positions"], width)) if config["positions"] else None
        self.q = nn.Linear(width, width, bias=config["bias"]) if config["q"] else nn.Identity()
        self.kv = nn.Linear(width, 2 * width, bias=config["bias"])
        self.q_norm = build_norm(config["qk_norm"], width // self.heads)
        self.k_norm = build_norm(config["qk_norm"], width // self.heads)
        self.proj = nn.Linear(width, width)
        self.norm = build_norm(config["norm"], width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, config["hidden"]), "fc2": nn.Linear(config["hidden"], width)})

    def forward(self, x: Tensor) -> Tensor:
        """Pool the tokens into one vector a sample."""
        batch, _, width = x.shape
        if self.pos_embed is not None:
            x = x + self.pos_embed
        q = self.q(self.latent.expand(batch, -1, -1)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        pooled = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        pooled = self.proj(pooled.transpose(1, 2).reshape(batch, -1, width))
        pooled = pooled + self.mlp["fc2"](self.activation(self.mlp["fc1"](self.norm(pooled))))
        return pooled.mean(1) if self.reduce == "avg" else pooled[:, 0]


class FrozenTail(nn.Module):
    """Final norm and pooling: y_k ``(batch, tokens, width)`` to features ``(batch, width)``. Nothing here is trained.

    Args:
        config: JSON-able description (``docs/protocol.md``, section "Tail").
        tensors: its parameters by name; ``None`` leaves them to ``load_state_dict``.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        if config["pool"] not in POOLS:
            raise ValueError(f"unknown pooling {config['pool']!r} in the tail's config; known: {', '.join(POOLS)}.")
        self.config = dict(config)
        width: int = config["width"]
        self.first_pooled = 0 if config["pool_prefix"] else config["prefix_tokens"]
        self.norm = build_norm(config["norm"], width)
        self.attn_pool = LatentPool(config["map"], width) if config["pool"] == "map" else None
        self.fc_norm = build_norm(config["fc_norm"], width)
        self._averages_first = config["pool"] == "avg" and isinstance(self.norm, nn.Identity)
        if tensors is not None:
            self.load_state_dict(dict(tensors))
        self.requires_grad_(False)

    def readout(self, tokens: int) -> Readout:
        """Say which rows of y_k, of so many tokens, :meth:`from_rows` needs: a norm before a pool needs them all."""
        if self.config["pool"] == "token":  # the norm is per token, so only the CLS rows (DeiT has two) need it
            return First(tokens, self.config["class_tokens"])
        return Mean(tokens, self.first_pooled) if self._averages_first else Whole()

    def forward(self, y: Tensor) -> Tensor:
        """Turn the refined tokens into the feature vector that the classifier sees."""
        return self.from_rows(self.readout(y.shape[1]).rows(y))

    def from_rows(self, rows: Tensor) -> Tensor:
        """Turn what :meth:`readout` reads of the refined tokens, ``(batch, m, width)``, into the feature vector."""
        if self.config["pool"] == "token" or self._averages_first:
            return self.fc_norm(self.norm(rows).mean(1))
        x = self.norm(rows)[:, self.first_pooled :]
        match self.config["pool"]:
            case "avg":
                x = x.mean(1)
            case "max":
                x = x.amax(1)
            case "avgmax":
                x = 0.5 * (x.amax(1) + x.mean(1))
            case "map":
                assert self.attn_pool is not None
                x = self.attn_pool(x)
        return self.fc_norm(x)

"""Blocks of a ViT in float64, written by hand from tensors by name, and each method as its publication has it."""

import math

import torch


def quick_gelu(x):
    return x / (1 + torch.exp(-1.702 * x))


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


class Plain:
    """The frozen trunk: ``weights`` by timm's names, ``trained`` by the names in the changed trunk."""

    def __init__(self, weights, trained, *, depth, heads, prefix=0, grid=()):
        self.w, self.t = weights, trained
        self.depth, self.heads, self.prefix, self.grid = depth, heads, prefix, grid

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0)

    def norm(self, name, x):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(variance + 1e-6) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attend(self, i, z):
        q, k, v = self.linear(f"blocks.{i}.attn.qkv", z).chunk(3, -1)
        size = q.shape[-1] // self.heads
        heads = []
        for at in range(0, q.shape[-1], size):
            own = slice(at, at + size)
            scores = q[..., own] @ k[..., own].mT / math.sqrt(size)
            weights = torch.exp(scores - scores.amax(-1, keepdim=True))
            heads.append(weights / weights.sum(-1, keepdim=True) @ v[..., own])
        return self.linear(f"blocks.{i}.attn.proj", torch.cat(heads, -1)) * self.w.get(f"blocks.{i}.ls1.gamma", 1)

    def mlp(self, i, z):
        hidden = gelu(self.linear(f"blocks.{i}.mlp.fc1", z))
        return self.linear(f"blocks.{i}.mlp.fc2", hidden) * self.w.get(f"blocks.{i}.ls2.gamma", 1)

    def between(self, i, x):
        return x

    def block(self, i, x):
        x = self.between(i, x + self.attend(i, self.norm(f"blocks.{i}.norm1", x)))
        return x + self.mlp(i, self.norm(f"blocks.{i}.norm2", x))

    def embed(self, x):
        return x

    def outputs(self, x):
        found, x = [], self.embed(x)
        for i in range(self.depth):
            x = self.block(i, x)
            found.append(x)
        return found

    def affine(self, name, x):
        return x @ self.t[f"{name}.weight"].T + self.t[f"{name}.bias"]

    def bottleneck(self, name, x, activation):
        return self.affine(f"{name}.up", activation(self.affine(f"{name}.down", x)))


class Adapters(Plain):
    def attend(self, i, z):
        y = super().attend(i, z)
        name = f"blocks.{i}.attn.behind"
        return y + self.bottleneck(name, y, gelu) if f"{name}.up.bias" in self.t else y

    def mlp(self, i, z):
        y = super().mlp(i, z)
        return y + self.bottleneck(f"blocks.{i}.mlp.behind", y, gelu)


class AdaptFormer(Plain):
    def mlp(self, i, z):
        return super().mlp(i, z) + 0.1 * self.bottleneck(f"blocks.{i}.mlp.beside", z, torch.relu)


class Convpass(Plain):
    def bypass(self, name, z):
        hidden = quick_gelu(self.affine(f"{name}.down", z))
        kernel, bias = self.t[f"{name}.conv.weight"], self.t[f"{name}.conv.bias"]
        found = torch.empty_like(hidden)
        rows, columns = self.grid
        for token in range(z.shape[1]):
            total = bias
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    if token < self.prefix:
                        other = token if down == right == 0 else None
                    else:
                        row, column = divmod(token - self.prefix, columns)
                        inside = 0 <= row + down < rows and 0 <= column + right < columns
                        other = self.prefix + (row + down) * columns + column + right if inside else None
                    if other is not None:
                        total = total + hidden[:, other] @ kernel[:, :, down + 1, right + 1].T
            found[:, token] = total
        return self.affine(f"{name}.up", quick_gelu(found))

    def attend(self, i, z):
        return super().attend(i, z) + self.bypass(f"blocks.{i}.attn.beside", z)

    def mlp(self, i, z):
        return super().mlp(i, z) + self.bypass(f"blocks.{i}.mlp.beside", z)


class SSF(Plain):
    def scaled(self, name, y):
        return y * self.t[f"{name}.scale"] + self.t[f"{name}.shift"]

    def linear(self, name, x):
        return self.scaled(name, super().linear(name, x))

    def norm(self, name, x):
        return self.scaled(name, super().norm(name, x))


class LoRA(Plain):
    def linear(self, name, x):
        y = super().linear(name, x)
        if f"{name}.lora_A.default.weight" not in self.t:
            return y
        return y + x @ self.t[f"{name}.lora_A.default.weight"].T @ self.t[f"{name}.lora_B.default.weight"].T


class FacT(Plain):
    """Matrices in the order of places, then of blocks; the update of y = W x by a d x d part is V S U."""

    PLACES = (("attn.qkv", 1, 3), ("attn.proj", 1, 1), ("mlp.fc1", 1, 4), ("mlp.fc2", 4, 1))

    def core(self, number):
        core = self.t["fact.core"]
        if "fact.mix" not in self.t:
            return core[number]
        return sum(share * part for share, part in zip(self.t["fact.mix"][number], core, strict=True))

    def linear(self, name, x):
        y = super().linear(name, x)
        block, place = int(name.split(".")[1]), name.split(".", 2)[2]
        number = 0
        for other, inner, outer in self.PLACES:
            if other == place:
                break
            number += inner * outer * self.depth
        number += block * inner * outer
        updates = []
        for _ in range(outer):
            total = 0
            for part in x.chunk(inner, -1):
                total = total + part @ (self.t["fact.v"] @ self.core(number) @ self.t["fact.u"]).T
                number += 1
            updates.append(total)
        return y + torch.cat(updates, -1)


class ShallowPrompts(Plain):
    """The prompts stand behind the prefix tokens, as published."""

    def outputs(self, x):
        first, patches = x[:, : self.prefix], x[:, self.prefix :]
        prompts = self.t["blocks.0.prompts"].expand(len(x), -1, -1)
        found = []
        for i in range(self.depth):
            y = self.block(i, torch.cat([first, prompts, patches], 1))
            behind = self.prefix + prompts.shape[1]
            first, prompts, patches = y[:, : self.prefix], y[:, self.prefix : behind], y[:, behind:]
            found.append(torch.cat([first, patches], 1))
        return found


class DeepPrompts(Plain):
    def block(self, i, x):
        prompts = self.t[f"blocks.{i}.prompts"].expand(len(x), -1, -1)
        y = super().block(i, torch.cat([x[:, : self.prefix], prompts, x[:, self.prefix :]], 1))
        return torch.cat([y[:, : self.prefix], y[:, self.prefix + prompts.shape[1] :]], 1)


class STAdapter(Plain):
    def between(self, i, x):
        name = f"blocks.{i}.adapter"
        hidden = self.affine(f"{name}.down", x[:, self.prefix :])
        rank = hidden.shape[-1]
        conv = torch.nn.Conv3d(rank, rank, (3, 1, 1), padding=(1, 0, 0), groups=rank).double()
        conv.weight.data = self.t[f"{name}.kernel"].T.reshape(rank, 1, 3, 1, 1)
        conv.bias.data = self.t[f"{name}.bias"]
        maps = conv(hidden.reshape(len(x), *self.grid, rank).permute(0, 4, 1, 2, 3))
        found = self.affine(f"{name}.up", maps.permute(0, 2, 3, 4, 1).reshape(hidden.shape))
        return torch.cat([x[:, : self.prefix], x[:, self.prefix :] + found], 1)

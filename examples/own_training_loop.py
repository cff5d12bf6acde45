"""Train a network of your own on cached block outputs, in your own loop.

The network here is one linear layer on the class tokens of all blocks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import losa_cache as lc

device = "cuda" if torch.cuda.is_available() else "cpu"

# This runs the frozen backbone once. Later calls find the cache and return at once.
cache = lc.extract("vit_digits", "digits", device=device)


def class_tokens(blocks: list[Tensor]) -> Tensor:
    """Take token 0 of each block: (batch, blocks x width)."""
    return torch.cat([block[:, 0] for block in blocks], dim=1).float()


with lc.batches(cache, batch_size=32, val_fraction=0.2, seed=0, device=device) as batches:
    width = len(batches.points) * cache.manifest.width
    model = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(cache.manifest.classes))).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(10):
        for batch in batches:  # one epoch; the next one comes in another order
            loss = F.cross_entropy(model(class_tokens(batch.blocks)), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    right = 0
    with torch.inference_mode():
        for batch in batches.held_out():
            right += int((model(class_tokens(batch.blocks)).argmax(1) == batch.labels).sum())
    print(f"held-out accuracy: {100 * right / len(batches.held_out_samples):.1f} %")

"""Read a cache with zarr and numpy alone, without losa-cache: any Zarr v3 reader can do this.

    losa-cache extract --backbone vit_digits --dataset digits --out digits.zarr
    python examples/read_with_zarr.py digits.zarr

The format is described in docs/protocol.md. This example classifies by the nearest class mean of the last block.
"""

import sys

import numpy as np
import zarr

cache = zarr.open_group(sys.argv[1], mode="r")
about = cache.attrs["losa_cache"]
fields = about["fields"]
print(f"{fields['backbone']['name']} on {fields['dataset']['name']}, layers {fields['layers']}, {fields['precision']}")

# (samples, layers, tokens, width). bfloat16 is stored as uint16: the upper half of a float32.
stored = cache[f"activations/{fields['tap']}"]
last_block = stored[:, -1].astype(np.uint32) << 16
features = last_block.view(np.float32).mean(axis=1)  # the mean over the tokens: (samples, width)

labels = cache["labels"][:]  # -1 marks a sample that was skipped
features, labels = features[labels >= 0], labels[labels >= 0]
training = np.arange(len(labels)) % 5 > 0  # every fifth sample is held out; the cache's order is random

means = np.stack([features[training & (labels == label)].mean(axis=0) for label in range(len(about["classes"]))])
distances = ((features[~training, None] - means) ** 2).sum(axis=2)
accuracy = (distances.argmin(axis=1) == labels[~training]).mean()
print(f"held-out accuracy: {100 * accuracy:.1f} %")

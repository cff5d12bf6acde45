"""The side network, the frozen tail and the classifier: all that stage two computes. Plain torch, no timm, no Zarr."""

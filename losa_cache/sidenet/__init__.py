"""The side network, the frozen tail and the classifier: everything that training computes. Plain torch, no timm, no
Zarr.
"""

"""Triton kernels for the exact fast form of LoSA on CUDA devices (:mod:`losa_cache.sidenet.fast` is their oracle)."""

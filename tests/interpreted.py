"""Triton's kernels on the CPU, by its interpreter."""

import pytest
import torch


def interpret(monkeypatch):
    """Let the interpreter round to bfloat16 as GPUs do: to the nearest, ties to even. It cuts off, or rounds ties up,
    and takes numbers for others below the normal ones.

    Skips where there is no interpreter.
    """
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled for this machine's GPU: see tests/cuda")
    from triton import language
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def exact(values, source, target, mode):
        if (source, target) == (language.float32, language.bfloat16):
            return torch.tensor(values.view("float32")).bfloat16().view(torch.uint16).numpy()
        if (source, target) == (language.bfloat16, language.float32):
            return values.astype("uint32") << 16
        return convert(values, source, target, mode)

    monkeypatch.setattr(interpreter, "_convert_float", exact)

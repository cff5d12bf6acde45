"""A file in ONNX, by torch's exporter of traced programs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from losa_cache.apply.export.graph import Exportable
from losa_cache.errors import UserError
from losa_cache.extras import extra

EARLIEST = (2, 9)
"""The first torch whose exporter of traced programs is its own default."""
LARGEST = 2_000_000_000
"""Bytes of weights in one file: protobuf ends at 2 GiB. Larger ones go to a second file, ``FILE.data``."""
FATAL = 4
"""ONNX Runtime's severity of log lines: what is wrong is raised, too."""


def release() -> tuple[int, ...]:
    """Give the first two numbers of torch's version."""
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def require() -> None:
    """Refuse to begin without the packages that it takes.

    Raises:
        UserError: naming what is missing.
    """
    if release() < EARLIEST:
        raise UserError(
            f"ONNX export needs torch {'.'.join(map(str, EARLIEST))} or later, and this is {torch.__version__}: update "
            "torch, or choose --format torch."
        )
    for package in ("onnx", "onnxscript", "onnxruntime"):
        with extra(package, f"ONNX export needs {package}", "export"):
            __import__(package)


def write(program: torch.export.ExportedProgram, exported: Exportable, path: Path, about: Mapping[str, Any]) -> None:
    """Translate a traced program and write it, and what it says of itself as JSON texts in ``metadata_props``."""
    shapes = [{0: "batch"} for _ in exported.names]
    found = torch.onnx.export(
        program,
        input_names=exported.names,
        output_names=[about["output"]],
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
    )
    assert found is not None
    found.model.metadata_props.update({name: json.dumps(value) for name, value in about.items()})
    found.save(path, external_data=sum(tensor.nbytes for tensor in program.state_dict.values()) > LARGEST)


def run(path: Path, exported: Exportable, batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Load the file in ONNX Runtime and run it on batches."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = []
    for inputs in batches:
        feed = {name: value.numpy() for name, value in zip(exported.names, inputs, strict=True)}
        found.append(torch.from_numpy(session.run(None, feed)[0]))
    return found

"""``export``: an adapter to a file for other programs, which is put in place once it gives losa-cache's own outputs."""

import io
import logging
import os
import re
import traceback
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from losa_cache.apply.export import onnx_file, torch_file
from losa_cache.apply.export.about import about
from losa_cache.apply.export.config import ExportConfig
from losa_cache.apply.export.graph import Exportable, SideOnly, WithBackbone
from losa_cache.apply.names import name_adapters
from losa_cache.apply.open import backbone_for, require_fits
from losa_cache.backbone import Backbone
from losa_cache.errors import UserError
from losa_cache.failures import sentence
from losa_cache.files import clear, publish, reason, remedy, sync_tree, write_whole
from losa_cache.options import lists_options, with_options
from losa_cache.train.trained_adapter import TrainedAdapter, load_adapter
from losa_cache.tuned.rebuild import trunk_of

log = logging.getLogger(__name__)

FORMATS: dict[str, Any] = {"onnx": onnx_file, "torch": torch_file}
TRACED, CHECKED = 2, (3, 1)
"""Samples of the batch that a program is traced with, and of those that the file is checked on."""
TOLERANCE = 1e-3
"""Largest difference, relative to the largest output, that rounding may explain."""
TALKERS = ("torch", "onnxscript", "onnx_ir")
"""Loggers of the exporters."""
LACKING = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")


@lists_options(ExportConfig)
def export(
    adapter: str | Path | TrainedAdapter,
    *,
    backbone: Backbone | None = None,
    config: ExportConfig | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write a trained adapter, with its frozen backbone or by itself, to a file that other programs run.

    The file takes batches of any size, of pixels uint8 ``(batch, *backbone.input.shape)`` or, with ``side_only``, of
    block outputs float32 ``(batch, tokens, width)``. It gives float32 ``(batch, outputs)``, such as logits of classes,
    or of a dense task ``(batch, outputs, rows, columns)``. All weights are in float32. It says of itself what goes in
    and what comes out (:func:`losa_cache.apply.export.about.about`).

    >>> lc.export("runs/flowers-losa-1", out="flowers.onnx")  # doctest: +SKIP

    Args:
        adapter: loaded, or its path or ``hub:owner/name``, as of ``losa_cache.load_adapter``.
        backbone: loaded, on the CPU; by default the one that the adapter was trained on.
        config: the options.
        options: fields of :class:`ExportConfig`, over those of ``config``.

    Returns:
        ``files`` (one; of ONNX with more than 2 GB of weights a second one that holds these), ``bytes`` of all,
        ``format``, ``outputs`` (how many a sample, or a place of its map, has), ``shape`` (of what the file gives),
        ``difference`` (the largest between an output of the file and of losa-cache itself, on noise, relative to the
        largest output), and what the file says of itself.

    Raises:
        UserError: if the adapter and the backbone do not fit, the exporter lacks an operator, the file gives other
            outputs, or it cannot be written.
    """
    chosen = with_options(ExportConfig, config, options)
    file = FORMATS[chosen.format]
    file.require()
    name, loaded = _load(adapter)
    spec = None
    exported: Exportable
    if chosen.side_only:
        if loaded.method is not None:
            raise UserError(
                f"adapter {name!r} was trained inside the backbone ({loaded.method}), so it has no side network: leave "
                "--side-only out."
            )
        exported = SideOnly(loaded)
    else:
        trunk = backbone or backbone_for({name: loaded}, weights=chosen.weights, device=torch.device("cpu"))
        require_fits(name, loaded, trunk)
        if trunk.device.type != "cpu" or trunk.streamed is not None:
            raise UserError("the backbone is exported from the CPU: move it there with to('cpu').")
        if loaded.method is not None:
            trunk = trunk_of(trunk, loaded)
        else:
            loaded = loaded.around(trunk.tail, tokens=trunk.tokens)
        exported, spec = WithBackbone(loaded, trunk), trunk.input
    says = about(loaded.config, exported.points, exported.names, exported.shapes, spec)
    batches = [exported.noise(batch, seed=batch) for batch in CHECKED]
    expected = [exported.expected(inputs) for inputs in batches]
    log.info("the model is traced, written and checked: a large one takes minutes.")
    with _work_folder(chosen.path) as folder:
        made = folder / chosen.path.name
        with _report(chosen.path, chosen.format):
            file.write(trace(exported), exported, made, says)
            found = file.run(made, exported, batches)
        difference = _difference(found, expected)
        files = _put(folder, chosen.path)
    sizes = {"files": [str(path) for path in files], "bytes": sum(path.stat().st_size for path in files)}
    gives = {"outputs": loaded.adapter.classifier.out_features, "shape": ["batch", *expected[0].shape[1:]]}
    return {**sizes, "format": chosen.format, **gives, "difference": difference, **says}


def _load(adapter: str | Path | TrainedAdapter) -> tuple[str, TrainedAdapter]:
    """Give an adapter on the CPU, and the name that it goes by in messages."""
    if isinstance(adapter, TrainedAdapter):
        return "given", deepcopy(adapter).cpu().eval()
    ((name, place),) = name_adapters([str(adapter)]).items()
    return name, load_adapter(place, device="cpu")


def trace(exported: Exportable) -> torch.export.ExportedProgram:
    """Record what a module computes, for any number of samples."""
    shapes = exported.shape_of(torch.export.Dim("batch", min=1))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch's transformer layers would be one operator, which ONNX lacks
    try:
        with torch.no_grad():
            return torch.export.export(exported, exported.noise(TRACED, seed=0), dynamic_shapes=shapes, strict=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Give the largest difference of a file's outputs to losa-cache's own, relative to the largest of these.

    Raises:
        UserError: if rounding does not explain it.
    """
    apart = 0.0
    for theirs, ours in zip(found, expected, strict=True):
        if ours.shape != theirs.shape:
            raise UserError(
                f"the exported file gives outputs of the shape {tuple(theirs.shape)}, and losa-cache of "
                f"{tuple(ours.shape)}: it was not kept. Please report it."
            )
        largest = ours.abs().max().clamp(min=torch.finfo(ours.dtype).tiny)
        apart = max(apart, float((ours - theirs).abs().max() / largest))
    if not apart <= TOLERANCE:
        raise UserError(
            f"the exported file gives other outputs than losa-cache, by {apart:.2g} of the largest one on noise "
            f"(at most {TOLERANCE:g} is rounding): it was not kept. Please report it."
        )
    return apart


def _put(folder: Path, out: Path) -> list[Path]:
    """Move what was made to where it belongs, the file that names the others last.

    Raises:
        UserError: if something has come there meanwhile.
    """
    made = sorted(folder.iterdir(), key=lambda part: part.name == out.name)
    final = [out.with_name(part.name) for part in made]
    if taken := next((path for path in final if os.path.lexists(path)), None):
        raise UserError(f"{str(taken)!r} exists: choose another --out.")
    sync_tree(folder)
    for part, path in zip(made, final, strict=True):
        publish(part, path)
    return final[::-1]


@contextmanager
def _work_folder(out: Path) -> Generator[Path, None, None]:
    """Give a folder beside a file, on its file system, that is gone when the context ends.

    Raises:
        UserError: if the system refuses to write.
    """
    folder = out.with_name(f".{out.name}.losa-cache-{os.getpid()}")
    try:
        clear(folder)
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        raise UserError(
            f"{str(out)!r} cannot be written ({reason(error)}): {remedy(error)}, or choose another --out."
        ) from error
    finally:
        clear(folder)


@contextmanager
def _report(out: Path, format: str) -> Generator[None, None, None]:
    """Keep what an exporter says from the terminal. If it fails, a file beside ``out`` holds it all.

    Raises:
        UserError: if it fails, with the operator that it lacks, or its reason.
    """
    said, place = io.StringIO(), out.with_name(f"{out.name}.log")
    handler = logging.StreamHandler(said)
    loggers = [logging.getLogger(name) for name in TALKERS]
    before = [(own.handlers, own.propagate) for own in loggers]
    for own in loggers:
        own.handlers, own.propagate = [handler], False
    try:
        with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if isinstance(error, UserError) or sentence(error) is not None:
            raise
        text = f"{said.getvalue()}\n{''.join(traceback.format_exception(error))}"
        write_whole(place, text.encode(errors="backslashreplace"))
        raise UserError(f"{_reason(error, format)}. What the exporter said is in {str(place)!r}.") from error
    finally:
        for own, (handlers, propagate) in zip(loggers, before, strict=True):
            own.handlers, own.propagate = handlers, propagate


def _reason(error: BaseException, format: str) -> str:
    """Say in half a sentence why an exporter failed."""
    innermost = error
    while (cause := innermost.__cause__ or innermost.__context__) is not None:
        innermost = cause
    if found := LACKING.search(str(innermost)):
        return f"{format} has no operator for {found[1]}, which the model uses: choose --format torch"
    first = (str(innermost).strip() or type(innermost).__name__).splitlines()[0]
    return f"the model cannot be exported as {format} ({type(innermost).__name__}: {first[:200]})"

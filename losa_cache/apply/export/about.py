"""What an exported file says of itself: everything that a program needs which has the file alone."""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN

from losa_cache.data.transforms import InputSpec
from losa_cache.points import CONV
from losa_cache.sidenet.decoder import DETAIL
from losa_cache.tasks import CLASSIFICATION

LOGITS, OUTPUTS = "logits", "outputs"
"""Names of the output: of classification, and of other tasks."""


def output_name(config: Mapping[str, Any]) -> str:
    """Name the output of an adapter."""
    return LOGITS if config.get("task", CLASSIFICATION) == CLASSIFICATION else OUTPUTS


def about(
    config: Mapping[str, Any],
    points: Sequence[str],
    names: Sequence[str],
    shapes: Sequence[Sequence[int]],
    spec: InputSpec | None,
) -> dict[str, Any]:
    """Describe an exported file.

    Args:
        config: of the adapter.
        points: of the backbone that it reads.
        names, shapes: of the inputs, each for one sample.
        spec: what the backbone wants of an image; ``None``: block outputs go in.

    Returns:
        JSON-able values by name: ``task``, ``classes`` (in the order of the logits), ``inputs`` (dtype and shape by
        name), ``output``, ``maps`` of a dense task (:func:`maps`), ``thresholds`` (of several labels, in the order of
        ``classes``: the probability from which on each is predicted), ``preprocessing`` (``None`` where block outputs
        go in), ``backbone`` (name and hash of its weights), ``adapter`` (its side network, or the method that
        changed the backbone, the points that it reads, and the digest of its tensors) and ``software``.
    """
    fields = config["cache"]["fields"]
    dtype = "float32" if spec is None else "uint8"
    own = {name: config["adapter"].get(name) for name in ("side", "rank", "head")}
    own |= {"method": dict(config["method"])} if config.get("method") else {}
    places = {"points": list(points), "tap": config["tap"], "start": config["start"]}
    return {
        "task": config.get("task", CLASSIFICATION),
        "classes": list(config["classes"]),
        "inputs": {
            name: {"dtype": dtype, "shape": ["batch", *shape]} for name, shape in zip(names, shapes, strict=True)
        },
        "output": output_name(config),
        **({"maps": maps(config)} if config["adapter"].get("dense") else {}),
        **({"thresholds": thresholds} if (thresholds := config.get("constants", {}).get("thresholds")) else {}),
        "preprocessing": None if spec is None else preprocessing(spec, fields),
        "backbone": dict(fields["backbone"]),
        "adapter": own | places | {"sha256": config.get("sha256"), "run": config.get("run")},
        "software": {name: version(name) for name in ("losa-cache", "torch", "timm")},
    }


def maps(config: Mapping[str, Any]) -> dict[str, Any]:
    """Say what becomes of the outputs of a dense task, ``(batch, outputs, rows, columns)``: of patches or their parts.

    Returns:
        ``rows`` and ``columns``; ``enlarge``: how and to which height and width (``size``, that of the crop), before
        anything else is made of them; ``values``: ``logits`` of the classes, or ``log_depth``, the natural logarithm.
    """
    dense = config["adapter"]["dense"]
    rows, columns = (length * (DETAIL if dense["decoder"] == CONV else 1) for length in dense["grid"])
    values = "log_depth" if config["task"] == "depth" else "logits"
    return {
        "rows": rows,
        "columns": columns,
        "enlarge": "bilinear",
        "size": list(config["constants"]["size"]),
        "values": values,
    }


def preprocessing(spec: InputSpec, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Say how a picture becomes the pixels that a backbone expects, in the order of the steps.

    Args:
        spec: what it expects.
        fields: of the cache.

    Returns:
        ``pixels``, if files that are not 8-bit RGB were decoded by rules of their own (``docs/protocol.md``, section
        "Identity"); ``orientation``: ``upright``, if pictures are turned then as their EXIF orientation says, or
        ``stored``; ``mode`` of Pillow; ``resize``: ``cover`` (keep the aspect ratio, and fill at least ``size``),
        ``contain`` (keep it, and fit into ``size``) or ``stretch`` (to exactly ``size``); ``size``: height and width;
        ``interpolation``, with antialiasing; ``crop``: height and width of the middle that is kept; ``fill``: the value
        of each channel for what lies around a picture that is smaller than that. Then follows what the file does by
        itself: pixels are divided by 255, ``mean`` is subtracted, and the result is divided by ``std``. Of a video, how
        many ``frames`` are taken, and every how many-th (``stride``; 0: evenly spread over all of it).
    """
    height, width = spec.size[1:]
    resize = {"squash": "stretch", "border": "contain"}.get(spec.crop_mode, "cover")
    fill = [round(255 * value) for value in IMAGENET_DEFAULT_MEAN] if resize == "contain" else [0] * spec.size[0]
    return {
        **({"pixels": dict(fields["pixels"])} if fields.get("pixels") else {}),
        "orientation": str(fields.get("orientation") or "stored"),
        "mode": "L" if spec.size[0] == 1 else "RGB",
        "resize": resize,
        "size": [math.floor(length / (spec.crop_pct or 0.875)) for length in (height, width)],
        "interpolation": spec.interpolation,
        "crop": [height, width],
        "fill": fill,
        "mean": list(spec.mean),
        "std": list(spec.std),
        **({} if spec.frames == 1 else {"frames": spec.frames, "stride": spec.stride}),
    }

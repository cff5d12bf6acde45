"""Pure planning of an extraction: the name of the cache, and in which batches it is filled."""

from collections.abc import Iterable

from losa_cache.cache.layout import Layout
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import get_precision
from losa_cache.data.decode import View
from losa_cache.inputs import Inputs
from losa_cache.points import ALL

BATCH_BYTES = 512 * 1024 * 1024
MAX_BATCH = 64
MAX_AT_ONCE = 1024  # images: by then moving the weights is nothing beside computing with them
HOST_SHARE = 4  # one pass is collected and the one before is written, in half of the free memory


def cache_name(manifest: Manifest) -> str:
    """Give the name of a cache: backbone, data set, options and the start of its identity."""
    backbone, dataset = manifest.fields["backbone"]["name"], manifest.fields["dataset"]
    views = "" if manifest.views == 1 else f"-{manifest.views}{'clips' if manifest.clips > 1 else 'views'}"
    layers = "" if len(manifest.layers) == manifest.depth else f"-{len(manifest.layers)}layers"
    tap = "" if manifest.fields["tap"] == "block" else f"-{manifest.fields['tap']}"
    tokens = "" if manifest.holds == ALL else f"-{manifest.holds}"
    identity = manifest.identity.removeprefix("sha256:")[:8]
    name = f"{backbone}-{dataset['name']}-{dataset['split']}".replace(":", "-").replace("/", "-")
    precision = manifest.precision.replace(":", "-").replace("%", "pc")
    return f"{name}{views}{layers}{tap}{tokens}-{precision}-{identity}.zarr"


def default_batch(inputs: Inputs) -> int:
    """Choose a batch size of at most 64 such that the activations, all tokens as a run reads them, stay below 512
    MiB.
    """
    manifest, backbone = inputs.manifest, inputs.backbone
    values = len(manifest.points) * backbone.trunk_tokens * backbone.width
    return max(1, min(MAX_BATCH, BATCH_BYTES // (values * get_precision(manifest.precision).dtype.itemsize)))


def batches_at_once(image: int, batch_size: int, memory: int) -> int:
    """Choose how many batches go through a streamed backbone together, at least 1.

    Args:
        image: bytes that an image takes on the host until it is written.
        batch_size: images in a batch.
        memory: free bytes of the host.
    """
    return max(1, min(MAX_AT_ONCE, memory // HOST_SHARE // image) // batch_size)


def batches(layout: Layout, wanted: Iterable[int], batch_size: int) -> list[tuple[range, frozenset[int]]]:
    """Divide the wanted rows into batches.

    Batches lie on a fixed grid. So a sample is computed together with the same samples, and rounded in the same way,
    whether or not the extraction was interrupted.

    Returns:
        for each batch its rows, and those of them that are wanted.
    """
    keep: dict[int, set[int]] = {}
    for row in wanted:
        keep.setdefault(row // batch_size * batch_size, set()).add(row)
    return [(range(at, min(at + batch_size, layout.samples)), frozenset(keep[at])) for at in sorted(keep)]


def views_of(rows: Iterable[int], views: int) -> list[View]:
    """Give the sample and view of each row: view 0 is plain, view v > 0 the v-th augmentation, or clip v."""
    return [(row // views, row % views or None) for row in rows]

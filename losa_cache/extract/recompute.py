"""Compute samples of a finished cache again by the backbone, to compare them or to replace damaged ones."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from losa_cache.backbone import Backbone
from losa_cache.backbone.names import CHECKPOINT, VIDEO, full_name
from losa_cache.cache.health import Damage
from losa_cache.cache.identity import differences
from losa_cache.cache.precision import EncodedBatch
from losa_cache.cache.reader import BlockReader
from losa_cache.cache.receipt import Receipt
from losa_cache.cache.registry import OPENED, knows, remember
from losa_cache.cache.schema import check_options
from losa_cache.cache.store import ActivationCache
from losa_cache.calibrate import images_at_once, run_views
from losa_cache.data.names import PILLOW, is_embedded, is_file, is_name, kind_of, moved
from losa_cache.data.samples import Samples
from losa_cache.errors import UserError
from losa_cache.extract import pipeline
from losa_cache.extract.create_cache import create_cache, sources_of
from losa_cache.extract.meter import Meter
from losa_cache.extract.plan import default_batch, views_of
from losa_cache.inputs import Inputs, load_given, open_inputs
from losa_cache.inputs_config import PRETRAINED, RANDOM, InputsConfig
from losa_cache.machine.device import choose_device, default_workers
from losa_cache.options import given
from losa_cache.outside import UnreadableError

HALF_NOISE, FLOAT_NOISE = 0.02, 1e-4  # relative, of matrix products in another batch or on another device


def reopen(
    cache: ActivationCache,
    *,
    backbone: Backbone | None = None,
    dataset: Samples | None = None,
    data_dir: str | Path | None = None,
    weights: str | Path | None = None,
    device: str | None = None,
) -> Inputs:
    """Open the backbone and the data set from which a cache was extracted.

    Args:
        cache: complete.
        backbone, dataset: loaded ones, if the cache was extracted from such.
        data_dir, weights: where these lie now; by default where they were at extraction.
        device: as in ``losa_cache.extract``.

    Raises:
        UserError: if they cannot be opened, or are not those of the cache.
    """
    _require_one_origin(cache)
    named = _where(cache, given(backbone=backbone, dataset=dataset, data_dir=data_dir, weights=weights))
    options = _trusted_options(cache, named) if cache.manifest.options else {}
    options.pop("batch_size", None)
    if not options:
        if backbone is None or dataset is None:
            raise UserError(
                f"cache {str(cache.path)!r} was extracted from loaded objects: only losa_cache.verify_cache, given "
                "backbone and dataset, can compute its samples again."
            )
        fields = cache.manifest.fields
        options = {
            "layers": cache.manifest.layers,
            "tap": fields["tap"],
            "embedding": fields["embedding"],
            "tokens": cache.manifest.holds,
            "precision": cache.manifest.precision,
            **fields["sampling"],
            "views": fields["views"]["count"] // cache.manifest.clips,
            "augment": fields["views"]["augment"],
            "clips": cache.manifest.clips,
            "decoder": fields.get("decoder", PILLOW),
        }
    options["ignore_orientation"] = not cache.manifest.upright  # older caches do not say
    options |= cache.manifest.pixels.options()
    options |= named
    inputs = open_inputs(**options, device=choose_device(device))
    inputs = inputs.numbered_as(cache.manifest.fields["dataset"]["fingerprint"])
    unasked = {"compute": None, "made_from": None}
    ours, theirs = ({**m.fields, **unasked} for m in (inputs.manifest, cache.manifest))
    if wrong := differences(ours, theirs, ("now", "at its extraction")):
        raise UserError(
            f"cache {str(cache.path)!r} was extracted from something else: it differs in {'; '.join(wrong)}. "
            "Say with --data-dir and --weights where its images and weights lie."
        )
    return inputs


def reopen_images(
    cache: ActivationCache, *, dataset: Samples | None = None, data_dir: str | Path | None = None
) -> Samples:
    """Open the images from which a cache was extracted, in the order of its samples, without the backbone.

    Args:
        cache: complete.
        dataset: the loaded one, if the cache was extracted from such.
        data_dir: where the images lie now; by default where they were at extraction.

    Raises:
        UserError: if they cannot be opened, or are not those of the cache.
    """
    if dataset is None:
        _require_one_origin(cache)
        if not cache.manifest.options:
            raise UserError(
                f"cache {str(cache.path)!r} was extracted from loaded images: only Python, which can be given them "
                "(dataset=), can look at them again."
            )
        named = _where(cache, given(data_dir=data_dir))
        options = _trusted_options(cache, named, weights=False) | named
        known = {name: options[name] for name in (*OPENED, "columns") if name in options}
        known |= cache.manifest.pixels.options()
        dataset = load_given(InputsConfig(**known))
    fingerprint = cache.manifest.fields["dataset"]["fingerprint"]
    dataset = dataset.numbered_as(fingerprint)
    if dataset.fingerprint != fingerprint:
        raise UserError(
            f"cache {str(cache.path)!r} was extracted from other images than {dataset.name!r} "
            f"{dataset.split!r} has now: say with --data-dir where they lie."
        )
    places = {name: place for place, name in enumerate(dataset.ids)}
    return dataset.select(np.array([places[name] for name in cache.sample_ids], dtype=np.int64))


def _require_one_origin(cache: ActivationCache) -> None:
    """Refuse a cache that was merged: its samples come from several data sets.

    Raises:
        UserError: if it was.
    """
    if len(cache.manifest.fields.get("made_from", ())) > 1:
        raise UserError(
            f"cache {str(cache.path)!r} was merged from others, and its samples cannot be computed together: name "
            "those that it was merged from."
        )


def _where(cache: ActivationCache, named: dict[str, Any]) -> dict[str, Any]:
    """Give the options that a user gives now, such that they say where the data set of a cache lies."""
    name = (cache.manifest.options or {}).get("dataset")
    if "data_dir" not in named or "dataset" in named or not isinstance(name, str):
        return named
    place = Path(named["data_dir"])
    return {option: value for option, value in named.items() if option != "data_dir"} | moved(name, place)


def _trusted_options(cache: ActivationCache, given: Mapping[str, Any], *, weights: bool = True) -> dict[str, Any]:
    """Give a cache's options, unless they would open or fetch what this user has never named.

    A cache from elsewhere may name any folder or checkpoint of this machine, or one to download. Its options are used
    only if this user's own registry says that it was extracted from there, or if they open nothing.

    Args:
        cache: a cache with options.
        given: options that the user gives now.
        weights: whether the backbone is opened, too.

    Raises:
        UserError: saying which options must be given.
    """
    name = str(cache.path)
    try:
        options = check_options(cache.manifest.options or {})
    except (ValueError, UnreadableError) as error:
        raise UserError(f"the options in {name!r} cannot be used ({error}): extract again.") from error
    if knows(cache.path, cache.manifest):
        return options
    asked = []
    dataset = options["dataset"]
    if not given.keys() & {"dataset", "data_dir" if is_name(dataset) else "dataset"} and not is_embedded(dataset):
        file = f"{Path(kind_of(dataset)[1]).name!r} and of " if is_file(dataset) else ""
        asked.append(f"--data-dir, the folder of {file}its images")
    if weights and not given.keys() & {"weights", "backbone"} and not _comes_along(options):
        asked.append("--weights, a file or the word pretrained")
    if asked:
        raise UserError(
            f"cache {name!r} was not extracted by this user here, so the paths that it names are not opened: pass "
            f"{' and '.join(asked)}."
        )
    return options


def _comes_along(options: Mapping[str, Any]) -> bool:
    """Whether the weights are random, or a part of this package."""
    trunk = full_name(options["backbone"]).removeprefix(VIDEO) if options["backbone"] != CHECKPOINT else ""
    weights = options.get("weights", PRETRAINED)
    return weights == RANDOM or (weights == PRETRAINED and trunk == "vit_digits")


def compare(cache: ActivationCache, inputs: Inputs, count: int, *, seed: int) -> dict[str, Any]:
    """Compute random rows again by the backbone (``docs/protocol.md``, section "Verifying").

    Args:
        cache: complete.
        inputs: of :func:`reopen`.
        count: how many rows.
        seed: of the choice.

    Returns:
        ``rows``, ``identical`` (rows whose bytes are equal), ``error`` (relative, by point, the mean over the rows),
        ``largest_error`` (over rows and points), ``allowed`` (by point) and ``wrong``: ids of the samples beyond it.
    """
    points = cache.manifest.points
    there = np.flatnonzero(cache.labels >= 0)
    rows = np.sort(np.random.default_rng(seed).choice(there, min(count, len(there)), replace=False))
    noise = FLOAT_NOISE if inputs.compute == torch.float32 else HALF_NOISE
    stated = torch.tensor(cache.manifest.encoding["error"]).expand(len(points))
    allowed = 2 * stated + noise
    encoding = cache.encoding()
    reader = BlockReader(cache, points)
    errors: list[Tensor] = []
    reached: list[Tensor] = []
    identical = 0
    parts = np.array_split(rows, -(-len(rows) // images_at_once(inputs)))
    plan = [views_of(part.tolist(), cache.manifest.views) for part in parts]
    for part, (batch, blocks) in zip(parts, run_views(inputs, plan, workers=default_workers()), strict=True):
        batch.require(inputs.samples, "it did when the cache was made")
        encoded = EncodedBatch.of(encoding.to(blocks[0].device), blocks)
        again = encoded.stored.cpu()
        encoding.saturate(again, encoded.extremes.cpu())
        stored = torch.empty(again.shape[1], len(part), *again.shape[2:], dtype=again.dtype)
        reader.read(part, list(stored))
        kept = stored.transpose(0, 1).contiguous()
        same = (again.view(torch.uint8) == kept.view(torch.uint8)).flatten(1).all(dim=1)
        found = torch.empty(len(part), len(points))
        for point, (block, decoded) in enumerate(zip(blocks, encoding.decode(list(stored)), strict=True)):
            fresh = block.cpu().flatten(1)
            apart = decoded.float().flatten(1) - fresh
            found[:, point] = (apart.norm(dim=1) / fresh.norm(dim=1).clamp_min(1e-30)).nan_to_num(torch.inf)
        identical += int(same.sum())
        reached.append(found)
        errors.append(found.where(~same[:, None], torch.minimum(found, allowed)))  # equal bytes may hold NaN
    reader.close()
    error = torch.cat(errors)
    wrong = (error > allowed).any(dim=1).nonzero().flatten().tolist()
    return {
        "rows": len(rows),
        "identical": identical,
        "error": [float(f"{own:.3g}") for own in torch.cat(reached).mean(0).tolist()],
        "largest_error": float(error.max()),
        "allowed": [round(limit, 6) for limit in allowed.tolist()],
        "wrong": list(dict.fromkeys(cache.ids[int(rows[at])] for at in wrong)),
    }


def _forget(cache: ActivationCache, damage: Damage) -> None:
    """Remove the receipts of damaged shards that no backbone can compute: whoever made the cache writes them again.

    Raises:
        UserError: saying so.
    """
    with cache.path.lock() as lock:
        lock.metadata.repair(cache.manifest.identity)
        for part in damage.shards:
            Receipt(cache.receipts, part.shard, cache.manifest.identity).forget()
    verb = "merge" if len(cache.manifest.fields["made_from"]) > 1 else "transcode"
    raise UserError(
        f"{len(damage.shards)} damaged shards of {str(cache.path)!r} hold values of another cache, which the backbone "
        f"would compute otherwise: run the same losa-cache {verb} again, which writes them anew."
    )


def mend(cache: ActivationCache, damage: Damage, open_again: Callable[[], Inputs]) -> None:
    """Restore damaged metadata files, write missing lists of checksums, and compute damaged samples again.

    Args:
        cache: as :func:`examine` opened it.
        damage: to repair.
        open_again: gives the inputs, if samples must be computed.

    Raises:
        UserError: for what cannot be repaired.
    """
    if not damage.shards:
        with cache.path.lock() as lock:
            lock.metadata.repair()
        for shard, checksums in damage.lists.items():
            Receipt(cache.receipts, shard, cache.manifest.identity).write_list(checksums)
        return
    if cache.manifest.fields.get("made_from"):
        _forget(cache, damage)
    inputs = open_again()
    options = cache.manifest.options or {}
    batch_size = options.get("batch_size") or inputs.backbone.fitting_batch(default_batch(inputs), inputs.compute)
    workers = default_workers()
    with create_cache(inputs, cache.path, workers=workers, batch_size=batch_size, options=None) as (writer, _):
        if (sources := sources_of(writer, inputs)) is not None:
            sources.require_unchanged([part.shard for part in damage.shards], renew=False)
        writer.forget({part.shard: part.rows for part in damage.shards})
        wanted = writer.wanted()
        pipeline.run(
            inputs,
            writer,
            sources,
            [wanted],
            images=len(wanted),
            batch_size=batch_size,
            workers=workers,
            skip_errors=bool(cache.manifest.skipped),
            meter=Meter(),
        )
        mended = writer.finish()
    remember(mended.path, mended.manifest)

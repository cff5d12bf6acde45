"""A cache's description of itself: the attributes of its Zarr group (``docs/protocol.md``, section "Attributes")."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from losa_cache.cache.identity import identity_hash
from losa_cache.cache.schema import check_attributes
from losa_cache.data.pixel_rules import PixelRules
from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, require
from losa_cache.points import ALL, TAPS, stored_points
from losa_cache.targets.target_set import LABELS

PROTOCOL, WITH_TARGETS, MADE = 4, 5, 6
"""Protocol of an extracted cache, of one that has target sets beside its labels, of one made from other caches."""
KEY = "losa_cache"
MOST_TOLD = 300  # letters of a message
UPRIGHT = "upright"


@dataclass(frozen=True)
class Manifest:
    """Everything about a cache except its arrays. JSON can hold all of it.

    Attributes:
        fields: what decides the numbers: ``backbone`` {name, weights}, ``input``, ``tap``, ``layers`` (block numbers),
            ``embedding``, ``precision``, ``compute``, ``dataset`` {name, split, fingerprint}, ``sampling`` {seed,
            limit}, ``views`` {count, augment, clips}; ``decoder``, if it was not Pillow; ``orientation``, if pictures
            were turned upright; ``pixels``, if they were decoded by other rules than the default; ``tokens``, if pooled
            rows are stored; and ``made_from``, the identities of other caches whose stored values these values come
            from, if an extraction would give others.
        tokens: ``{"total", "prefix", "grid": [rows, columns]}`` of a point as it is stored; the grid is [n_t, rows,
            columns] for a video, and [1, 1] for pooled rows.
        width: channels of a block output.
        depth: blocks of the whole backbone.
        classes: class names.
        tail: config of the frozen tail; its tensors are arrays.
        encoding: the description by the precision (``Encoding.describe``), and ``compressed``: the ratio of stored to
            plain bytes on a calibration sample, or null if chunks are not compressed.
        options: the options of the extraction, so that samples can be computed again; null if it was given loaded
            objects.
        software: versions of the software that wrote it; no part of the identity.
        complete: whether every shard is there.
        skipped: samples that did not decode, ``{"row", "id", "reason"}``; their rows read as NaN, their labels as -1.
        overflowed: values beyond the precision's range, stored as the largest finite value.
        non_finite: values that the backbone itself gave as infinite or NaN.
        targets: the target sets beside the labels, by name: ``{"kind", "names", "fingerprint"}``. They are no part of
            the identity: block outputs do not depend on them.
        made_from: the caches that it was made from by ``transcode`` or ``merge``, ``{"identity", "fields",
            "software", "digest"}`` of each; empty if it was extracted.
        identity: hash of ``fields`` and the number 4, whatever the protocol.
    """

    fields: dict[str, Any]
    tokens: dict[str, Any]
    width: int
    depth: int
    classes: list[str]
    tail: dict[str, Any]
    software: dict[str, str]
    encoding: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] | None = None
    complete: bool = False
    skipped: list[dict[str, Any]] = field(default_factory=list)
    overflowed: int = 0
    non_finite: int = 0
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    made_from: list[dict[str, Any]] = field(default_factory=list)
    identity: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", identity_hash({"protocol": PROTOCOL, **self.fields}))

    @property
    def protocol(self) -> int:
        """The protocol that the cache follows: the lowest that has all of it, for versions that know no other."""
        return MADE if self.made_from else WITH_TARGETS if self.targets else PROTOCOL

    @property
    def layers(self) -> list[int]:
        """Block numbers tapped, ascending, 1 ... depth."""
        return list(self.fields["layers"])

    @property
    def points(self) -> list[str]:
        """The points that the array holds along its dimension of layers, in order: names of ``losa_cache.points``."""
        embedding: bool = self.fields["embedding"]
        return stored_points(self.fields["tap"], self.layers, embedding=embedding, tokens=self.holds)

    @property
    def holds(self) -> str:
        """Which tokens of a point are stored, one of ``losa_cache.points.TOKENS``: all tokens, or pooled rows."""
        return str(self.fields.get("tokens", ALL))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the values of a row: points, tokens, channels."""
        return len(self.points), int(self.tokens["total"]), self.width

    def names_of(self, targets: str) -> list[str] | None:
        """Give the names of a target set's classes, labels or columns; ``None``: it is not there."""
        if targets == LABELS:
            return self.classes
        return list(self.targets[targets]["names"]) if targets in self.targets else None

    @property
    def views(self) -> int:
        """Number of rows of each sample. For images, view 0 is plain and the others are augmented; for videos, each row
        is a clip.
        """
        return int(self.fields["views"]["count"])

    @property
    def clips(self) -> int:
        """Number of clips of each video; 1 for images."""
        return int(self.fields["views"]["clips"])

    @property
    def upright(self) -> bool:
        """Whether pictures were turned as their EXIF orientation or their video's display matrix says."""
        return self.fields.get("orientation") == UPRIGHT

    @property
    def pixels(self) -> PixelRules:
        """How files that are not 8-bit RGB became pixels."""
        return PixelRules.from_fields(self.fields)

    @property
    def precision(self) -> str:
        """Name of the precision."""
        return str(self.fields["precision"])

    @property
    def skipped_rows(self) -> frozenset[int]:
        """Rows that are missing because their samples were skipped."""
        return frozenset(entry["row"] for entry in self.skipped)

    def to_attributes(self) -> dict[str, Any]:
        """Give the attributes of the Zarr group."""
        content = asdict(self)
        identity = content.pop("identity")
        for newer in ("targets", "made_from"):
            if not content[newer]:
                del content[newer]
        return {KEY: content | {"protocol": self.protocol, "identity": identity}}

    def completed(self, **counts: Any) -> "Manifest":
        """Give the same manifest marked as complete, with the counts of the extraction."""
        return replace(self, complete=True, **counts)

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], where: str) -> "Manifest":
        """Read and check the attributes of a Zarr group.

        Raises:
            UserError: if they are not those of a cache, belong to another protocol, or do not agree with their own
                hash.
        """
        content = attributes.get(KEY)
        if not isinstance(content, Mapping):
            raise UserError(f"{where!r} is a Zarr group but no activation cache.")
        protocol = content.get("protocol")
        if protocol not in (PROTOCOL, WITH_TARGETS, MADE):
            raise UserError(
                f"{where!r} follows protocol {str(protocol)[:MOST_TOLD]}; this losa-cache reads protocols {PROTOCOL} "
                f"to {MADE}: use the version that wrote it, or extract again."
            )
        try:
            manifest = cls(**{name: value for name, value in content.items() if name != "protocol"})
            if manifest.fields["tap"] not in TAPS:  # it names a folder
                raise ValueError(f"tap {manifest.fields['tap']!r}")
            if not manifest.layers or not isinstance(manifest.fields["embedding"], bool):
                raise ValueError(f"layers {manifest.layers}, embedding {manifest.fields['embedding']!r}")
            if manifest.views < 1 or manifest.clips not in (1, manifest.views):
                raise ValueError(f"views.count {manifest.views}, views.clips {manifest.clips}")
            check_attributes(content)
            told = f"{len(manifest.targets)} target sets, made from {len(manifest.made_from)} caches"
            require(protocol == manifest.protocol, f"protocol {protocol} with {told}")
        except (TypeError, KeyError, ValueError, RecursionError, UnreadableError) as error:
            reason = str(error)[:MOST_TOLD]
            raise UserError(f"the attributes of {where!r} are not as protocol {protocol} says ({reason}).") from error
        if manifest.identity != content["identity"]:
            raise UserError(f"the attributes of {where!r} were altered: they do not agree with their identity hash.")
        return manifest

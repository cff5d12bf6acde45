"""Identity: a hash over everything that decides the numbers in a cache (``docs/protocol.md``, section "Identity")."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from losa_cache.points import ALL

SHOWN, SHORT = 40, 4  # letters of a value, entries of a list, that a message has room for
AS_STORED = "as stored"  # of pictures whose metadata are not followed
UNSAID = {
    "orientation": AS_STORED,
    "tokens": ALL,
    "pixels.range": "dtype",
    "pixels.channels": "the file's own",
    "pixels.page": "1",
    "pixels.profile": "not applied",
}
"""Fields that are missing where a cache is as older ones: what that says, in words."""


def identity_hash(fields: Mapping[str, Any]) -> str:
    """Hash JSON-able fields: sha256 of their canonical JSON (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], sides: tuple[str, str]) -> list[str]:
    """Name the fields that differ, each as ``"input.crop_pct (0.9 in training, 1.0 in these data)"``.

    If both values are lists of the same length, the first entry that differs is named: ``"classes[2] ("cat" in
    training, "dog" in these data)"``. Different fingerprints and missing fields are described in words.

    Args:
        ours, theirs: the fields.
        sides: what stands behind the values of each, in words.
    """
    a, b = dict(_flatten(ours)), dict(_flatten(theirs))
    return [
        _difference(name, a.get(name), b.get(name), sides)
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]


def _difference(name: str, ours: Any, theirs: Any, sides: tuple[str, str]) -> str:
    if name == "dataset.fingerprint" and ours and theirs:
        return f"{name} (files or labels were added, removed or replaced)"
    if name in UNSAID:
        return f"{name} ({ours or UNSAID[name]} {sides[0]}, {theirs or UNSAID[name]} {sides[1]})"
    if isinstance(ours, list) and isinstance(theirs, list) and (max(len(ours), len(theirs)) > SHORT):
        if len(ours) != len(theirs):
            return f"{name} ({len(ours)} {sides[0]}, {len(theirs)} {sides[1]})"
        place = next(at for at, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
        return _difference(f"{name}[{place}]", ours[place], theirs[place], sides)
    a, b = json.dumps(ours), json.dumps(theirs)
    same = next((at for at, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, same - SHOWN // 2) if max(len(a), len(b)) > SHOWN else 0
    return f"{name} ({_short(a, start)} {sides[0]}, {_short(b, start)} {sides[1]})"


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, json.loads(json.dumps(value))  # tuples and lists alike


def _short(text: str, start: int) -> str:
    """Give what a line has room for, from where two texts differ."""
    shown = text[start : start + SHOWN]
    return ("..." if start else "") + shown + ("..." if start + SHOWN < len(text) else "")

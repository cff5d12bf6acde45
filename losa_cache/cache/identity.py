"""Identity: a hash over all that decides the numbers in a cache (``docs/protocol.md``, section "Identity")."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any


def identity_hash(fields: Mapping[str, Any]) -> str:
    """Hash JSON-able fields: sha256 of their canonical JSON (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Name the fields that differ, each as ``"input.crop_pct (0.9 here, 1.0 there)"``."""
    a, b = dict(_flatten(ours)), dict(_flatten(theirs))
    return [
        f"{name} ({_short(a.get(name))} here, {_short(b.get(name))} there)"
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, json.loads(json.dumps(value))  # tuples and lists alike


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."

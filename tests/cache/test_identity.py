"""Identity hashes."""

import hashlib

from losa_cache.cache.identity import differences, identity_hash


def test_is_sha256_of_canonical_json():
    text = '{"a":[1,2],"b":{"c":"é"}}'
    assert identity_hash({"b": {"c": "é"}, "a": (1, 2)}) == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_differences_name_fields_and_both_values():
    ours = {"backbone": {"name": "vit_b", "weights": "x"}, "layers": (1, 2), "limit": None}
    theirs = {"backbone": {"name": "vit_h", "weights": "x"}, "layers": [1, 2], "limit": 5}
    sides = ("in a", "of b")
    assert differences(ours, theirs, sides) == [
        'backbone.name ("vit_b" in a, "vit_h" of b)',
        "limit (null in a, 5 of b)",
    ]
    assert differences(ours, ours, sides) == []

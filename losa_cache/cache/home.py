"""Where caches live by default, and which ones this user has: one small file a cache, so that writers never collide."""

import hashlib
import json
from pathlib import Path

from losa_cache.cache.location import Location
from losa_cache.files import write_json
from losa_cache.folders import home


def remember(store: Location) -> None:
    """Note that a store was completed now, wherever it lies; one on a server is not noted, but named."""
    if not isinstance(store, Path):
        return
    path = str(store.resolve())
    folder = home() / "known"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{hashlib.sha256(path.encode()).hexdigest()[:16]}.json", {"path": path})


def known_stores() -> list[Path]:
    """Stores that were completed and are still there, the most recent first."""
    notes = sorted((home() / "known").glob("*.json"), key=lambda note: note.stat().st_mtime_ns, reverse=True)
    stores = [Path(json.loads(note.read_text())["path"]) for note in notes]
    return [store for store in stores if store.is_dir()]

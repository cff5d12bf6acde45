"""Where this user's files go."""

import os
from pathlib import Path


def home() -> Path:
    """``$LOSA_CACHE_HOME``, by default ``~/.cache/losa-cache``."""
    return Path(os.environ.get("LOSA_CACHE_HOME") or "~/.cache/losa-cache").expanduser()

"""Stage two: a side network is trained from a cache. Nothing here imports a backbone but the online source."""

"""Training of a side network from a cache. Only the online source imports a backbone."""

"""What ``tests.forked`` loads once for all of its processes: all public names, the command line, the tests' helpers."""

import sklearn.datasets  # noqa: F401

import losa_cache
import losa_cache.cli
import losa_cache.display
import tests.conftest  # noqa: F401

for name in losa_cache.__all__:
    getattr(losa_cache, name)

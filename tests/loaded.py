"""What ``tests.forked`` loads once for all of its processes: all public names, the command line, the tests' helpers."""

import gc

import sklearn.datasets  # noqa: F401

import losa_cache
import losa_cache.cli
import losa_cache.display
import losa_cache.train.tensorboard_log
import tests.conftest  # noqa: F401

for name in losa_cache.__all__:
    getattr(losa_cache, name)
gc.freeze()  # no process looks through, and so copies, what all of them share
gc.enable()

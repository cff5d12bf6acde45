"""What ``tests.forked`` loads once for all of its processes: all public names, the command line, the tests' helpers."""

import gc
from importlib import import_module

gc.disable()  # nothing that modules make is garbage
for name in (
    "sklearn.datasets",
    "losa_cache.cli",
    "losa_cache.display",
    "losa_cache.train.tensorboard_log",
    "tests.conftest",
):
    import_module(name)
package = import_module("losa_cache")
for name in package.__all__:
    getattr(package, name)
gc.freeze()  # no process looks through, and so copies, what all of them share
gc.enable()

"""Where caches can lie: one module for each kind of store, with a class that keeps ``losa_cache.cache.storage``.

``losa_cache.cache.location.locate`` imports every module of this folder when it is given a URL, and finds the class by
the schemes that it names. So a new store is one file here.
"""

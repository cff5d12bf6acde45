"""Methods that train inside the backbone, with which LoSA is compared: one file each (:mod:`losa_cache.tuned`)."""

"""A frozen vision transformer: a name or a checkpoint to block outputs, plus its frozen tail."""

from losa_cache.backbone.model import Backbone, load_backbone

__all__ = ["Backbone", "load_backbone"]

"""New caches made of finished ones, without the backbone: in another form (``transcode``), of several (``merge``)."""

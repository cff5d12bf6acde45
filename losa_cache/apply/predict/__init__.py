"""``predict``: what adapters make of images, videos or a cache, as rows of a table that is written whole."""

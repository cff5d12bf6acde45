"""Extraction: the frozen backbone runs once over a data set and fills a cache."""

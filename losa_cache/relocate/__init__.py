"""Finished caches as things: copied, moved, removed, each with its receipts and its note in the registry."""

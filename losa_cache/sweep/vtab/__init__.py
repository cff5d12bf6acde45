"""The VTAB-1k protocol: a sweep for each task and rank, and a table of the results."""

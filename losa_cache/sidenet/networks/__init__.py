"""The side networks, one file each: facts (``SPEC``), how it is built, and how many of it are stacked."""

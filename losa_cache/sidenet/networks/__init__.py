"""The side networks, a file each: what is known of one (``SPEC``), how it is built, and how many of it are stacked."""

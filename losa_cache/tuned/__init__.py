"""A backbone in which something is trained: it is run for every image of every epoch, and no cache serves it."""

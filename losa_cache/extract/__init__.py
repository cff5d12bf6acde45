"""Stage one: the frozen backbone runs once over a data set, into a cache."""

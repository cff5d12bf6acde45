"""Where samples come from: one kind of data set a file."""

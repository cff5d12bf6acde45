"""From the name or folder of a data set to samples with ids and labels, and from an image to pixels."""

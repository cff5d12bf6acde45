"""A data-set name or folder to samples with ids and labels, and the transform from image to pixels."""

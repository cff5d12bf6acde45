"""Many trials from one cache: search, joint training, choice and report."""

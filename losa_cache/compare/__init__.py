"""Runs and probes beside each other, on the same test images."""

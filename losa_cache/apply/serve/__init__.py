"""A server of predictions: HTTP in front of one backbone with many adapters."""

"""What is to be learned: target sets, one entry a sample. Nothing here imports torch."""

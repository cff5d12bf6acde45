"""What was trained, put to use: predictions on new images, one backbone for many adapters, files for other programs."""

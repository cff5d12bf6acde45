"""One file for other programs: a trained adapter, with its backbone or by itself, as ONNX or as a torch program."""

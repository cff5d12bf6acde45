"""Classify images with an exported adapter, by onnxruntime and Pillow alone: without losa-cache, without torch.

losa-cache export runs/flowers-losa-1 --out flowers.onnx
python examples/onnx_run.py flowers.onnx image.jpg another.jpg

The file says of itself how a picture becomes pixels, and what the classes are called.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
steps = about["preprocessing"]
for path in sys.argv[2:]:
    image = Image.open(path)  # of 8 bits a channel; others are decoded first as steps.get("pixels") says
    image = (ImageOps.exif_transpose(image) if steps["orientation"] == "upright" else image).convert(steps["mode"])
    size = steps["size"][::-1]  # width and height; "cover" keeps the aspect ratio, "stretch" (--resize exact) does not
    if steps["resize"] == "cover":
        size = [int(size[0] * length / min(image.size)) for length in image.size]
    image = image.resize(size, Image.Resampling[steps["interpolation"].upper()])
    height, width = steps["crop"]
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height))).transpose(2, 0, 1)
    (logits,) = session.run(["logits"], {"pixels": pixels[None]})
    shares = np.exp(logits[0] - logits[0].max())
    print(f"{path}: {about['classes'][shares.argmax()]} ({100 * shares.max() / shares.sum():.1f} %)")

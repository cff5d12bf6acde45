"""Train several side networks from one cache, and compare them on the same test images."""

import losa_cache as lc
from losa_cache.compare.table import text

train = lc.extract("vit_digits", "digits")
test = lc.extract("vit_digits", "digits", split="test")

# LoSA with the default classifier over all layers, a linear probe, and attention over the pooled rows of all layers.
runs = [lc.train(train, side=side, epochs=8).run for side in ("losa", "linear", "fusion")]

# Accuracies come with intervals, and differences with paired tests on the same images.
comparison = lc.compare(*runs, test)
print(text(comparison))
best = max(comparison.methods, key=lambda method: method.top1)
print(f"best: {best.name}, {best.top1:.1f} %, 95 % interval {best.low:.1f} to {best.high:.1f} %")

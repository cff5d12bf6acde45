"""Search ranks and learning rates in one pass over the cache, and test the chosen setting once.

Needs the extra: pip install 'losa-cache[sweep]'
"""

import losa_cache as lc

train = lc.extract("vit_digits", "digits")
test = lc.extract("vit_digits", "digits", split="test")

result = lc.sweep(
    train,
    space={"rank": [4, 16], "lr": [1e-3, 4e-3]},  # a grid: four trials, which train together
    config=lc.TrainConfig(head="last", epochs=4, val_fraction=0.25),
    test_cache=str(test.path),
)
for trial in result.record.trials:
    print(f"trial {trial.number}: {trial.options}, validation accuracy {trial.curve[-1]['val_top1']:.1f} %")
print(f"chosen: trial {result.record.chosen}")
print(f"test accuracy: {result.record.test['top1']:.1f} %")
print(f"report: {result.folder / 'report.html'}")

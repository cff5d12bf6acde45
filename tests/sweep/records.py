from losa_cache.sweep.engine.record import SweepRecord, TrialRecord


def trial(number, value=None, *, state="complete", parameters=1000, epochs=6, command=None, **options) -> TrialRecord:
    """A trial whose curve rises to a value; none without one."""
    curve = [
        {"epoch": e, "train_loss": 1 / e, "val_loss": 2 / e, "val_top1": value - (epochs - e), "train_seconds": 0.5}
        for e in range(1, epochs + 1 if value is not None else 1)
    ]
    return TrialRecord(number, state, options, parameters, curve, command or f"losa-cache train --rank {number + 1}")


def sweep(trials, **fields) -> SweepRecord:
    """A sweep of these trials."""
    about = {
        "title": "a sweep",
        "cache": "https://caches.example/train.zarr",
        "identity": "sha256:00ff",
        "dataset": "digits",
        "training_samples": 400,
        "validation_samples": 100,
        "validated_on": "100 samples held out of the training cache by a hash of their ids",
        "protocol": "The best validation top-1 was selected.",
        "machine": "two cores",
        "started": 1_790_000_000.0,
        "finished": 1_790_001_800.0,
    }
    return SweepRecord(trials=trials, **(about | fields))

"""What limited the speed of an extraction, and what would shorten it. Pure."""

from losa_cache.extract.meter import Meter

NAMES = {
    "images": "decoding images",
    "backbone": "the backbone",
    "encoding": "encoding",
    "copy": "copies to the host",
    "writing": "writing",
}
ADVICE = {
    "images": "more --workers, on more CPU cores, or --decoder nvjpeg on a GPU would shorten it",
    "backbone": "a faster device, a smaller backbone or a smaller --img-size would shorten it",
    "encoding": "--precision bfloat16, which is only rounded, would shorten it",
    "copy": "fewer --layers or fewer bits (--bits 1) would shorten it",
    "writing": "fewer --layers, fewer bits (--bits 1) or a faster disk would shorten it",
}


def shares(meter: Meter) -> dict[str, float]:
    """Give for each part the share of an extraction's time in which it worked or was waited for.

    Parts run at the same time, so shares may add up to more than 1. The device computes while the main thread already
    waits for the next images, so only the rest of the time counts as waiting for them.

    Args:
        meter: of an extraction that has written something.
    """
    device = meter.forward + meter.encode
    spent = {
        "images": min(meter.waited_decode, max(0.0, meter.seconds - device)),
        "backbone": meter.forward,
        "encoding": meter.encode,
        "copy": meter.copy,
        "writing": meter.write,
    }
    return {part: seconds / meter.seconds for part, seconds in spent.items()}


def limiter(meter: Meter) -> str | None:
    """Say in one sentence what took an extraction's time, and what would shorten it; ``None`` if nothing ran."""
    if not meter.images or not meter.seconds:
        return None
    found = shares(meter)
    largest = max(found, key=lambda part: found[part])
    others = ", ".join(f"{NAMES[part]} {share:.0%}" for part, share in found.items() if part != largest)
    within = f"{found[largest]:.0%} of the time; {others}"
    return f"limited by {NAMES[largest]} ({within}): {ADVICE[largest]}."

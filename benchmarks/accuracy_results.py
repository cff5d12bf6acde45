"""Results of benchmarks/accuracy.py: lines of a JSON lines file to tables and goals. Pure."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.compare.significance import Difference, paired

TITLES = {
    "probe-last": "tuned probe, last layer",
    "probe-all": "tuned probe, all layers",
    "probe-within": "the probe in LoSA's default, alone",
    "fusion": "attentive fusion of all layers",
    "attentive": "attentive, last layer",
    "losa-paper": "LoSA, the paper's recipe",
    "losa": "LoSA, default",
    "losa-auto": "LoSA, --auto",
    "lora": "LoRA on qkv, tuned",
}
OURS, LORA, CHEAPER = "losa", "lora", ("probe-last", "probe-all", "fusion", "attentive")
ALL = 0
"""The shots of a run on all images."""


@dataclass(frozen=True)
class Result:
    """One method, trained once and tested once.

    Attributes:
        setting: what all results of a table share: backbone, input, epochs where they were given.
        dataset, method, shots, seed: which; 0 shots are all images.
        correct: whether each test image, in the order of the ids, is right: bits, in hexadecimal.
        images: test images.
        parameters: trained ones.
        seconds: of choosing and training.
        extract_seconds: of the extraction, for as many images; 0 of LoRA; ``None``: not known.
        chosen: what was chosen on held-out images.
        machine: that it ran on.
        error: why there is no result.
    """

    setting: dict[str, Any]
    dataset: str
    method: str
    shots: int
    seed: int
    correct: str = ""
    images: int = 0
    parameters: int = 0
    seconds: float = 0.0
    extract_seconds: float | None = None
    chosen: dict[str, Any] = field(default_factory=dict)
    machine: str = ""
    error: str | None = None

    @property
    def key(self) -> str:
        """Text that is equal for results of the same work."""
        return json.dumps([self.setting, self.dataset, self.method, self.shots, self.seed], sort_keys=True)

    def hits(self) -> NDArray[np.bool_]:
        """Unpack ``correct``."""
        return np.unpackbits(np.frombuffer(bytes.fromhex(self.correct), np.uint8), count=self.images).astype(bool)

    def line(self) -> str:
        """Give the line of the file."""
        return json.dumps(asdict(self)) + "\n"


def packed(hits: NDArray[np.bool_]) -> str:
    """Give ``Result.correct``."""
    return np.packbits(hits).tobytes().hex()


def parse(text: str) -> list[Result]:
    """Read the file's lines, without one that a kill cut short; of the same work the last counts."""
    lines = [line for line in text.split("\n")[:-1] if line]
    return list({result.key: result for result in (Result(**json.loads(line)) for line in lines)}.values())


class Results:
    """All results of one setting."""

    def __init__(self, found: Iterable[Result]) -> None:
        self.found = list(found)
        self.sets = list(dict.fromkeys(result.dataset for result in self.found))
        self.methods = [name for name in TITLES if any(result.method == name for result in self.found)]
        self.shots = sorted({result.shots for result in self.found}, key=lambda shots: shots or math.inf)

    def of(self, method: str, dataset: str, shots: int) -> list[Result]:
        """Results of a method, by seed, without those that failed."""
        alike = [r for r in self.found if (r.method, r.dataset, r.shots) == (method, dataset, shots) and not r.error]
        return sorted(alike, key=lambda result: result.seed)

    def top1(self, method: str, dataset: str, shots: int) -> float | None:
        """Mean over seeds, in percent."""
        own = self.of(method, dataset, shots)
        return 100 * statistics.mean(float(result.hits().mean()) for result in own) if own else None

    def difference(self, first: str, second: str, dataset: str, shots: int) -> Difference | None:
        """Compare two methods on the same test images, with the seeds that both have."""
        ours, theirs = (
            {result.seed: result.hits() for result in self.of(name, dataset, shots)} for name in (first, second)
        )
        both = sorted(ours.keys() & theirs.keys())
        return paired(np.stack([ours[s] for s in both]), np.stack([theirs[s] for s in both])) if both else None

    def mean_difference(self, first: str, second: str, shots: int) -> tuple[float, float, int] | None:
        """Mean over sets in points, its standard error, and over how many sets."""
        found = [self.difference(first, second, name, shots) for name in self.sets]
        own = [one for one in found if one is not None]
        if not own:
            return None
        error = math.sqrt(math.fsum(one.standard_error**2 for one in own)) / len(own)
        return 100 * statistics.mean(one.value for one in own), 100 * error, len(own)

    def seconds(self, method: str, shots: int) -> float | None:
        """Mean of training and extraction over sets and seeds; ``None`` where a part is not known."""
        own = [r for r in self.found if (r.method, r.shots) == (method, shots) and not r.error]
        if not own or any(result.extract_seconds is None for result in own):
            return None
        return statistics.mean(result.seconds + (result.extract_seconds or 0.0) for result in own)


def report(found: Results) -> str:
    """Lay all out in Markdown: accuracies, differences, goals."""
    parts = []
    for shots in found.shots:
        name = "all images" if shots == ALL else f"{shots} images a class"
        parts += [f"### Test top-1 (%), {name}", _accuracies(found, shots)]
        if OURS in found.methods:
            parts += [f"### {TITLES[OURS]} minus each method (points ± paired standard error), {name}"]
            parts += [_differences(found, shots)]
    parts += ["### Goals", *(f"* {goal}" for goal in goals(found))]
    failed = [result for result in found.found if result.error]
    if failed:
        parts += ["### Failed"]
        parts += [
            f"* {r.dataset}, {r.shots or 'all'} shots, seed {r.seed}, {TITLES[r.method]}: {r.error}" for r in failed
        ]
    return "\n\n".join(parts) + "\n"


def goals(found: Results) -> list[str]:
    """Say of each goal whether it is met, and by what figures."""
    if OURS not in found.methods:
        return ["there is no result of LoSA's default"]
    told = [_level(found)]
    told += [
        _ahead(found, rival, least)
        for rival, least in (("probe-all", 1.0), ("probe-last", 4.0), (LORA, -0.5))
        if rival in found.methods
    ]
    ours, theirs = found.seconds(OURS, ALL), found.seconds(LORA, ALL)
    if ours is not None and theirs is not None:
        told.append(f"{_verdict(ours <= theirs / 10)}: {ours:.0f} s, a tenth of LoRA's time is {theirs / 10:.1f} s")
    return told


def _level(found: Results) -> str:
    """At least level with the best cheaper method on every set and shot count, within one paired standard error."""
    short, cases = [], 0
    for shots in found.shots:
        for name in found.sets:
            rivals = {m: top1 for m in CHEAPER if (top1 := found.top1(m, name, shots)) is not None}
            if not rivals:
                continue
            best = max(rivals, key=rivals.__getitem__)
            gap = found.difference(OURS, best, name, shots)
            cases += 1
            if gap is None or gap.value < -gap.standard_error:
                figures = "no result" if gap is None else f"{100 * gap.value:+.1f} ± {100 * gap.standard_error:.1f}"
                short.append(f"{name} at {shots or 'all'} ({TITLES[best]}: {figures})")
    told = f"level with the best of the cheaper methods in {cases - len(short)} of {cases} cases"
    return f"{_verdict(cases > 0 and not short)}: {told}" + (f"; not in {'; '.join(short)}" if short else "")


def _ahead(found: Results, rival: str, least: float) -> str:
    gap = found.mean_difference(OURS, rival, ALL)
    if gap is None:
        return f"not met: no set has both {TITLES[OURS]} and {TITLES[rival]} on all images"
    value, error, sets = gap
    return (
        f"{_verdict(value >= least)}: {value:+.1f} ± {error:.1f} points to {TITLES[rival]}, mean of {sets} sets, "
        f"{least:+.1f} wanted"
    )


def _verdict(met: bool) -> str:
    return "met" if met else "not met"


def _accuracies(found: Results, shots: int) -> str:
    rows = []
    for method in found.methods:
        values = [found.top1(method, name, shots) for name in found.sets]
        whole = [value for value in values if value is not None]
        mean = statistics.mean(whole) if len(whole) == len(values) else None
        own = [r.parameters for r in found.found if (r.method, r.shots) == (method, shots) and not r.error]
        spread = f"{min(own):,}" if own and min(own) == max(own) else f"{min(own):,} to {max(own):,}" if own else "-"
        seconds = found.seconds(method, shots)
        rows.append([TITLES[method], *map(_say, [*values, mean]), spread, "-" if seconds is None else f"{seconds:.0f}"])
    return _table(["", *found.sets, "mean", "trained parameters", "seconds with extraction"], rows)


def _differences(found: Results, shots: int) -> str:
    rows = []
    for method in found.methods:
        if method == OURS:
            continue
        gaps = [found.difference(OURS, method, name, shots) for name in found.sets]
        cells = ["-" if gap is None else _gap(100 * gap.value, 100 * gap.standard_error) for gap in gaps]
        mean = found.mean_difference(OURS, method, shots)
        rows.append([TITLES[method], *cells, "-" if mean is None else _gap(*mean[:2])])
    return _table(["", *found.sets, "mean"], rows)


def _gap(value: float, error: float) -> str:
    return f"{value:+.1f} ± {error:.1f}"


def _say(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

"""The progress of a comparison on a terminal, or a line for each piece of work where there is none."""

from losa_cache.display import PassBar
from losa_cache.pareto.plan import Job, progress
from losa_cache.pareto.record import Accuracy, Study, Training
from losa_cache.text import shown

LETTERS = 60
"""A line has room for so many letters of what a process says."""


class ParetoBar(PassBar):
    """Show how many pieces of work are over, which is under way, and what its process says."""

    def __init__(self) -> None:
        super().__init__("trained, tested", 1)

    def __call__(self, study: Study, job: Job, line: str) -> None:
        """Take what :data:`losa_cache.pareto.run.Report` is given."""
        over, total = progress(study)
        figures = f", now {job.name}: {line[:LETTERS]}" if line else f", now {job.name}"
        self._bar.update(self._task, completed=over, total=total, figures=shown(figures))
        if not line:
            self.line(f"{over} of {total} done{_last(study)}; now {job.name}")


def _last(study: Study) -> str:
    """Say what came of the last piece of work."""
    if not study.works:
        return ""
    name, work = [*study.works.items()][-1]
    if work.error is not None:
        return f", the last: {name}: {work.error}"
    found = work.result.val_top1 if isinstance(work.result, Training) else None
    found = work.result.top1 if isinstance(work.result, Accuracy) else found
    return f", the last: {name}" + ("" if found is None else f", top-1 {found:.2f} %")

"""The progress of a comparison on a terminal, or a line for each piece of work where there is none."""

from losa_cache.display import PassBar
from losa_cache.pareto.plan import Job, total
from losa_cache.pareto.record import Study
from losa_cache.text import shown

LETTERS = 60
"""Of what a process says, for which a line has room."""


class ParetoBar(PassBar):
    """Show how many pieces of work are over, which is under way, and what its process says."""

    def __init__(self) -> None:
        super().__init__("trained, tested", 1)

    def __call__(self, study: Study, job: Job, line: str) -> None:
        """Take what :data:`losa_cache.pareto.run.Report` is given."""
        over = sum(work.over for work in study.works.values())
        figures = f", {job.name}: {line[:LETTERS]}" if line else f", {job.name}"
        self._bar.update(self._task, completed=over, total=total(study), figures=shown(figures))
        if not line:
            self.line(f"{over}/{total(study)} done; {job.name}")

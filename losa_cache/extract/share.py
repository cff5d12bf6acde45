"""The units that one of several processes extracts: it claims one after the other, as the pipeline asks for work."""

from collections.abc import Callable, Collection, Iterator
from itertools import chain
from time import monotonic, sleep

from losa_cache.cache.writer import CacheWriter
from losa_cache.extract.meter import Meter
from losa_cache.extract.part import Part
from losa_cache.extract.units import Units

LOOK = 5.0  # s between two looks at what other processes have done, for the progress
PAUSE = 1.0  # s between two, once there is nothing else to do


class Share:
    """Claim units and say what they lack.

    Args:
        writer: of a cache that this process writes with others.
        part: which units it may take.
        units: all of them.
        missing: numbers of the shards that are not done, in a set.
        meter: is told what others have done.
    """

    def __init__(self, writer: CacheWriter, part: Part, units: Units, missing: Collection[int], meter: Meter) -> None:
        assert writer.claims is not None
        self._writer, self._claims, self._part, self._units, self._meter = writer, writer.claims, part, units, meter
        self._open = {
            unit: lacking
            for unit in range(len(units))
            if (lacking := [shard for shard in units.shards(unit) if shard in missing])
        }
        self._mine: set[int] = set()
        self._looked = monotonic()
        self.images = sum(len(writer.layout.rows(shard)) for shard in missing)
        meter.start(self.images)

    def work(self) -> Iterator[list[int]]:
        """Give the missing rows of each unit that can be claimed: first of those that nobody has, then of those whose
        owner has gone.
        """
        taken = self._claims.taken
        for left in (False, True):
            for unit in self._order():
                self._look_now_and_then()
                if unit not in self._open or unit in self._mine or (not left and _name(unit) in taken):
                    continue
                lacking = self._lacking(unit)
                if not lacking:
                    continue
                if self._claims.take(_name(unit), lacking):
                    self._mine.add(unit)
                    yield [row for shard in lacking for row in self._writer.layout.rows(shard)]
                elif not left:
                    taken = self._claims.taken

    def wait(self) -> bool:
        """Wait a moment for others, and say whether units are left that this process may have to take."""
        if not self._part.free:
            return False
        sleep(PAUSE)
        self._look()
        return bool(self._open)

    def done(self) -> None:
        """Take note that all units of :meth:`work` were written.

        Raises:
            UserError: if one of them could not be.
        """
        self._writer.lock.wait()
        for unit in self._mine:
            self._lacking(unit)
        self._mine.clear()

    def _order(self) -> list[int]:
        """The units that may be taken; processes that take what is free begin in different places."""
        units = [unit for unit in self._open if self._part.takes(unit)]
        start = int(self._claims.token, 16) % max(1, len(units)) if self._part.free else 0
        return units[start:] + units[:start]

    def _lacking(self, unit: int) -> list[int]:
        """The shards of a unit that are not done."""
        lacking = self._writer.missing(self._open[unit])
        done = sum(len(self._writer.layout.rows(shard)) for shard in self._open[unit] if shard not in lacking)
        if unit not in self._mine:
            self._meter.elsewhere += done
        if lacking:
            self._open[unit] = lacking
        else:
            del self._open[unit]
        return lacking

    def _look_now_and_then(self) -> None:
        if monotonic() - self._looked > LOOK:
            self._look()

    def _look(self) -> None:
        taken = self._claims.taken
        for unit in [unit for unit in self._open if unit not in self._mine and _name(unit) in taken]:
            self._lacking(unit)
        self._meter.update()
        self._looked = monotonic()


def run_part(run: Callable[..., None], share: Share) -> None:
    """Write what a share may take, until nothing is left that it may have to take.

    Args:
        run: writes rows (``losa_cache.extract.pipeline.run``).
        share: of this process.
    """
    while True:
        work = share.work()
        if (first := next(work, None)) is not None:
            run(chain([first], work), images=share.images)
            share.done()
        elif not share.wait():
            return


def _name(unit: int) -> str:
    return f"{unit:06d}"

"""Which process writes which shards, where several write one cache.

A claim is a small file beside the store, which is created only if there is none of its name, and holds the token of its
owner. Once the owner has gone, the claim of the same name with the next generation takes over. No claim is ever taken
back, so a process that was stopped and goes on finds that it has lost; it asks before it publishes anything. The same
holds of a turn, in which one process at a time does what concerns the whole cache.
"""

import errno
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TypeVar

from losa_cache.cache import members
from losa_cache.cache.members import SUFFIX, Member
from losa_cache.cache.storage import StorePath
from losa_cache.errors import UserError
from losa_cache.files import reason, remedy
from losa_cache.outside import UnreadableError

TURN, GRID, PARTIAL = "turn", "grid", ".partial"
MOST_ROWS = 1_000_000  # of a batch on which processes agree
REMOVED = (errno.ENOENT, errno.ESTALE)  # what is said of a file that another process has just removed

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class LostTurnError(Exception):
    """Another process has taken over the turn of this one, which stood still: what was to be done in it is not done."""


@dataclass(frozen=True)
class Claim:
    """A claim: its name and its generation."""

    name: str
    generation: int

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.name}.{self.generation}"

    @property
    def next(self) -> "Claim":
        """The claim that takes it over."""
        return Claim(self.name, self.generation + 1)


class Claims(Member):
    """The claims of this process on a cache. Threads may share them.

    Args:
        receipts: the folder beside the store.

    Raises:
        UserError, OSError: if it cannot be written.
    """

    def __init__(self, receipts: StorePath) -> None:
        self._of_shard: dict[int, Claim] = {}
        self._told = False
        self._turn: Claim | None = None
        self._asked = 0.0
        super().__init__(receipts)

    def agree(self, grid: int, *, first: bool) -> int:
        """Begin, in a turn, and agree on the rows of a batch: they say where a claim begins and ends.

        Args:
            grid: rows of a batch, as this process would have them.
            first: whether no other process has begun, so that this one decides.

        Returns:
            those of the process that was first.

        Raises:
            UserError: if they cannot be written, or what is there is no such number.
            LostTurnError: if the turn is no more this process's.
        """
        self.require_turn()
        place = self.folder / GRID
        if first:
            try:
                place.write(str(grid).encode())
            except OSError as error:
                raise UserError(
                    f"{str(place)!r} cannot be written ({reason(error)}): {remedy(error)} and run the same command "
                    "again."
                ) from error
        else:
            grid = self._agreed(place, grid)
        self.begin()
        return grid

    @staticmethod
    def _agreed(place: StorePath, otherwise: int) -> int:
        try:
            agreed = int(place.read())
            if 1 <= agreed <= MOST_ROWS:
                return agreed
            why = f"it is {agreed}"
        except FileNotFoundError:  # all is written, and the rest is removed
            return otherwise
        except (UnreadableError, ValueError) as error:
            why = str(error)
        raise UserError(
            f"{str(place)!r} does not hold the rows of a batch, on which processes that write together agree "
            f"({why[:80]}): stop them all, then run the same command again."
        )

    @property
    def taken(self) -> set[str]:
        """The names of which there are claims, whoever has them."""
        return {name.rpartition(".")[0] for name in self.names if not name.endswith((SUFFIX, PARTIAL))}

    def take(self, name: str, shards: Iterable[int]) -> bool:
        """Claim shards by one name, and say whether they are this process's now: no other, nor this one, has them."""
        owners = self._owners(name)
        if owners and (owners[-1] == self.token or self.look(owners[-1])):
            return False
        claim = Claim(name, len(owners))
        if not self._create(claim):
            return False
        self._of_shard |= dict.fromkeys(shards, claim)
        return True

    def has(self, shard: int) -> bool:
        """Whether a shard still is this process's."""
        claim = self._of_shard.get(shard)
        return claim is not None and self._owner(claim) == self.token and self._owner(claim.next) is None

    def lost(self, shard: int) -> None:
        """Say, once, that another process has taken over what this one has done."""
        if not self._told:
            self._told = True
            log.warning(
                "shard %d (%s) was taken over by another process while this one stood still: what it has done of that "
                "is dropped.",
                *(shard, self.folder),
            )

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """Do what one process at a time may do: wait until no other does.

        If another one takes over meanwhile, because this one stood still, this starts over, behind that one. So
        ``work`` begins with a look at what there is, and asks (:meth:`require_turn`) before it changes anything.
        """
        while True:
            try:
                with self.turn():
                    return work()
            except LostTurnError:
                log.warning("another process has taken over what this one, which stood still, did in %s.", self.folder)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other process has the turn, and have it.

        Raises:
            LostTurnError: if another process has taken it over, and in place of errors that come of that.
        """
        while (gone := self._take_turn()) is None:
            sleep(members.PAUSE)
        try:
            yield
        except LostTurnError:
            raise
        except Exception as error:  # perhaps since another one was changing the same files
            self._asked = 0.0
            try:
                self.require_turn()
            except LostTurnError as lost:
                raise lost from error
            raise
        finally:
            own, self._turn = self._turn, None
            for claim, owner in (gone | ({} if own is None else {own: self.token})).items():  # its own comes last
                if self._owner(claim) == owner:  # no other's, if this one was held up
                    (self.folder / claim.file).unlink(missing_ok=True)

    def require_turn(self) -> None:
        """Make sure, in a turn, that it still is this process's; outside of one there is nothing to ask.

        It asks at most once in ``PAUSE``: only a process that stood still for much longer loses its turn.

        Raises:
            LostTurnError: if it is not.
        """
        if self._turn is None or monotonic() - self._asked < members.PAUSE:
            return
        asked = monotonic()
        if self._owner(self._turn) != self.token or self._owner(self._turn.next) is not None:
            raise LostTurnError
        self._asked = asked

    def _take_turn(self) -> dict[Claim, str | None] | None:
        """Claim the turn; give the claims of others, which have all gone, or ``None`` if one has not."""
        before = self._turns()
        claim = Claim(TURN, max((other.generation for other in before), default=-1) + 1)
        if any(owner is not None and self.look(owner) for owner in before.values()) or not self._create(claim):
            return None
        if self._turns() != before | {claim: self.token}:  # they changed while they were looked at
            (self.folder / claim.file).unlink(missing_ok=True)
            return None
        self._turn, self._asked = claim, monotonic()
        return before

    def _turns(self) -> dict[Claim, str | None]:
        """The owners of all turns that are there. One that has lost its own may have removed it between two others."""
        found = (re.fullmatch(rf"{TURN}\.([0-9]+)", name) for name in sorted(self.names))
        claims = [Claim(TURN, int(match[1])) for match in found if match]
        return {claim: self._owner(claim) for claim in sorted(claims, key=lambda claim: claim.generation)}

    def clear(self) -> None:
        """Remove what is no more needed, in a turn: all claims, and the files of members that have gone.

        Raises:
            LostTurnError: if the turn is no more this process's.
        """
        for name in self.names:
            if not self._needed(name):
                self.require_turn()
                (self.folder / name).unlink(missing_ok=True)

    def _needed(self, name: str) -> bool:
        """Whether a file is a turn, which its owner removes, or belongs to a member that is left, or begins to."""
        token, member, _ = name.partition(SUFFIX)
        if not member:
            if not name.endswith(PARTIAL):
                return name.startswith(f"{TURN}.")
            token = self._read(name) or ""
        return token == self.token or self.look(token) is not None

    def _owner(self, claim: Claim) -> str | None:
        """The token in a claim; ``None``: there is no such claim."""
        return self._read(claim.file)

    def _read(self, name: str) -> str | None:
        """Read a file that holds a token.

        Raises:
            UserError: if it cannot be read.
        """
        place = self.folder / name
        try:
            return place.read().decode("ascii", "replace")
        except FileNotFoundError:
            return None
        except UnreadableError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in REMOVED:
                return None
            raise UserError(
                f"{str(place)!r}, which says who writes a part of the cache, cannot be read ({error}): remove it, then "
                "run the same command again."
            ) from error

    def _owners(self, name: str) -> list[str]:
        """The owners of all generations of a claim."""
        claim, owners = Claim(name, 0), list[str]()
        while (owner := self._owner(claim)) is not None:
            owners.append(owner)
            claim = claim.next
        return owners

    def _create(self, claim: Claim) -> bool:
        place = self.folder / claim.file
        try:
            return place.create(self.token.encode())
        except FileNotFoundError:  # another process has just removed what was empty: a folder, a temporary file
            return place.create(self.token.encode())

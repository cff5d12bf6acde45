"""Which process writes which shards, where several write one cache.

A claim is a small file beside the store, which is created only if there is none of its name, and holds the token of its
owner. Once the owner has gone, the claim of the same name with the next generation takes over. No claim is ever taken
back, so a process that was stopped and goes on finds that it has lost; it asks before it publishes anything.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import sleep

from losa_cache.cache import members
from losa_cache.cache.members import SUFFIX, Member
from losa_cache.cache.storage import StorePath
from losa_cache.outside import UnreadableError

TURN, GRID = "turn", "grid"

log = logging.getLogger(__name__)


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
        super().__init__(receipts)

    def agree(self, grid: int, *, first: bool) -> int:
        """Begin, in a turn, and agree on the rows of a batch: they say where a claim begins and ends.

        Args:
            grid: rows of a batch, as this process would have them.
            first: whether no other process has begun, so that this one decides.

        Returns:
            those of the process that was first.
        """
        place = self.folder / GRID
        if first:
            place.write(str(grid).encode())
        with suppress(FileNotFoundError, UnreadableError, ValueError):  # none: all is written, and the rest is removed
            grid = int(place.read())
        self.begin()
        return grid

    @property
    def taken(self) -> set[str]:
        """The names of which there are claims, whoever has them."""
        return {name.rpartition(".")[0] for name in self.names if not name.endswith((SUFFIX, ".partial"))}

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

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Do what one process at a time may do: wait until no other does."""
        while (owners := self._take_turn()) is None:
            sleep(members.PAUSE)
        try:
            yield
        finally:
            for generation, owner in enumerate([*owners, self.token]):  # its own comes last
                if self._owner(claim := Claim(TURN, generation)) == owner:  # no other's, if this one was held up
                    (self.folder / claim.file).unlink(missing_ok=True)

    def _take_turn(self) -> list[str] | None:
        """Claim the turn; give the owners of earlier generations, which have all gone, or ``None``."""
        owners = self._owners(TURN)
        claim = Claim(TURN, len(owners))
        if any(map(self.look, owners)) or not self._create(claim):
            return None
        if self._owners(TURN)[: len(owners)] != owners:  # removed while it was looked at: another may have begun anew
            (self.folder / claim.file).unlink(missing_ok=True)
            return None
        return owners

    def clear(self) -> None:
        """Remove what is no more needed, in a turn: all claims, and the files of members that have gone."""
        for name in self.names:
            token = name.removesuffix(SUFFIX)
            member = token != name and (token == self.token or self.look(token))
            if not (member or name.startswith(f"{TURN}.") or name.endswith(".partial")):
                (self.folder / name).unlink(missing_ok=True)

    def _owner(self, claim: Claim) -> str | None:
        try:
            return (self.folder / claim.file).read().decode("ascii", "replace")
        except (FileNotFoundError, UnreadableError):
            return None

    def _owners(self, name: str) -> list[str]:
        """The owners of all generations of a claim."""
        claim, owners = Claim(name, 0), list[str]()
        while (owner := self._owner(claim)) is not None:
            owners.append(owner)
            claim = claim.next
        return owners

    def _create(self, claim: Claim) -> bool:
        return (self.folder / claim.file).create(self.token.encode())

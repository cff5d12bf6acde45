"""Which process writes which shards, where several write one cache.

A claim is a small file beside the store, which is created only if there is none of its name. It holds the token of its
owner. Every owner also keeps a file of its own there, with a number that it raises every few seconds. So an owner has
gone if its file is gone, if the system says that its process has ended, or if others have seen no new number for a
while, by their own clocks. Then the next claim of the same name, with the next generation, takes over.

No claim is ever taken back, so a process that was stopped and goes on finds that it has lost. It asks before it
publishes anything.
"""

import json
import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from time import monotonic, sleep
from typing import TypedDict
from uuid import uuid4

from losa_cache.cache.storage import StorePath
from losa_cache.errors import UserError
from losa_cache.machine.process import Process, this_process
from losa_cache.outside import UnreadableError, parse_json

FOLDER = "claims"
TURN, GRID, MEMBER = "turn", "grid", ".member"
BEAT = 10.0  # s between two numbers
STALE = 90.0  # s without a new one: network file systems may show a file's old content for a minute
PAUSE = 0.2  # s between two looks at a turn that another process has

log = logging.getLogger(__name__)


class _Member(TypedDict):
    """What an owner's file holds: its process, whether it has begun to write shards, and the number."""

    process: Process
    begun: bool
    beat: int


@dataclass(frozen=True)
class Claim:
    """A claim of this process: the name and the generation."""

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


class Claims:
    """The claims of one process on one cache. Threads may share them.

    Args:
        receipts: the folder beside the store.

    Raises:
        UserError, OSError: if it cannot be written.
    """

    def __init__(self, receipts: StorePath) -> None:
        self.folder, self.token = receipts / FOLDER, uuid4().hex[:16]
        self._member = _Member(process=this_process(), begun=False, beat=0)
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._of_shard: dict[int, Claim] = {}
        self._guard, self._left = threading.Lock(), threading.Event()
        self._write()
        threading.Thread(target=self._beat, name="claims", daemon=True).start()

    def begin(self, grid: int, *, first: bool) -> int:
        """Tell others, in a turn, that this process has found or made the cache and writes shards.

        Args:
            grid: rows of a batch, on which all must agree: they say where a claim begins and ends.
            first: whether no other process has begun, so that this one decides.

        Returns:
            the grid of the process that was first.
        """
        place = self.folder / GRID
        if first:
            place.write(str(grid).encode())
        with suppress(FileNotFoundError, UnreadableError, ValueError):  # none: all is written, and the rest is removed
            grid = int(place.read())
        self._member["begun"] = True
        self._write()
        return grid

    @property
    def others(self) -> bool:
        """Whether another process that is not known to have gone has begun."""
        tokens = [name.removesuffix(MEMBER) for name in self._names() if name.endswith(MEMBER)]
        return any(token != self.token and self._alive(token, begun=True) for token in tokens)

    @property
    def taken(self) -> set[str]:
        """The names of which there are claims, whoever has them."""
        return {name.rpartition(".")[0] for name in self._names() if not name.endswith((MEMBER, ".partial"))}

    def take(self, name: str, shards: Iterable[int]) -> bool:
        """Claim shards by one name, and say whether they are this process's now: no other, nor this one, has them."""
        owners = self._owners(name)
        if owners and (owners[-1] == self.token or self._alive(owners[-1])):
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

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Do what one process at a time may do: wait until no other does."""
        while any(map(self._alive, owners := self._owners(TURN))) or not self._create(Claim(TURN, len(owners))):
            sleep(PAUSE)
        try:
            yield
        finally:
            for generation in range(len(owners) + 1):  # its own comes last
                (self.folder / Claim(TURN, generation).file).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove what is no more needed, in a turn: all claims, and the files of owners that are known to have gone."""
        for name in self._names():
            token = name.removesuffix(MEMBER)
            member = token != name and (token == self.token or self._alive(token))
            if not (member or name.startswith(f"{TURN}.") or name.endswith(".partial")):
                (self.folder / name).unlink(missing_ok=True)

    def leave(self) -> None:
        """Let others have what is not finished."""
        self._left.set()
        with self._guard, suppress(UserError, OSError):  # others see no new number
            (self.folder / f"{self.token}{MEMBER}").unlink(missing_ok=True)

    def _names(self) -> list[str]:
        return [name for name, _ in self.folder.scan()]

    def _owner(self, claim: Claim) -> str | None:
        try:
            return (self.folder / claim.file).read().decode("ascii", "replace")
        except (FileNotFoundError, UnreadableError):
            return None

    def _owners(self, name: str) -> list[str]:
        """The owners of all generations of a claim."""
        claim, owners = Claim(name, 0), []
        while (owner := self._owner(claim)) is not None:
            owners.append(owner)
            claim = claim.next
        return owners

    def _create(self, claim: Claim) -> bool:
        return (self.folder / claim.file).create(self.token.encode())

    def _alive(self, token: str, *, begun: bool = False) -> bool:
        """Whether an owner is not known to have gone; ``begun``: and has begun."""
        try:
            content = (self.folder / f"{token}{MEMBER}").read()
        except (FileNotFoundError, UnreadableError):
            return False
        seen, since = self._seen.get(token, (b"", 0.0))
        if content != seen:
            self._seen[token] = content, since = content, monotonic()
        try:
            member = parse_json(content, _Member)
        except UnreadableError:
            return False
        if member["process"].ended or monotonic() - since > STALE:
            return False
        return member["begun"] or not begun

    def _write(self) -> None:
        with self._guard:
            if not self._left.is_set():
                content = self._member | {"process": asdict(self._member["process"])}
                (self.folder / f"{self.token}{MEMBER}").write(json.dumps(content).encode())

    def _beat(self) -> None:
        while not self._left.wait(BEAT):
            self._member["beat"] += 1
            try:
                self._write()
            except (UserError, OSError) as error:
                log.warning("%s cannot be written (%s): others may take over.", self.folder, error)

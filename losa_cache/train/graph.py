"""Repeated work on batches of one shape: it is recorded once and then replayed, as a graph on CUDA.

A training step of a side network consists of hundreds of small kernels, and launching a kernel from Python takes longer
than running it. A graph launches all of them at once. It stores addresses, not tensors, so everything that it reads
must keep its address.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor

from losa_cache.machine.capture import after_failed_capture, capture
from losa_cache.sidenet.operand import Block
from losa_cache.train.batch import Batch

log = logging.getLogger(__name__)

MOST = 8  # recordings: a source has a few buffers that it takes in turn, not many

Work = Callable[[Sequence[Block], Tensor], None]
"""Is given blocks and labels. What it keeps, it writes in place into tensors that outlive it, and after the part of it
that takes most memory: where that fails, the work can be done again."""


class Recorder(Protocol):
    """The contract of a recorder."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work once, so that nothing is left to be compiled, measured or set up when it is recorded."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return a function that does the work whenever it is called; do not do the work yet.

        Raises:
            Exception: whatever work raises that cannot be recorded. Then nothing was done.
        """
        ...


class CudaRecorder:
    """Recordings as CUDA graphs. All of them share their memory, because the cohorts of a sweep run in turn.

    They may share it because they are replayed in one stream, so never at the same time, and nothing that a graph
    leaves there is read after it. Work is done for the first time in the stream that will be captured, because
    libraries keep workspaces by stream. Other threads may use the device during a capture, as those of a source do.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._living: WeakSet[torch.cuda.CUDAGraph] = WeakSet()  # a pool lives as long as one graph in it

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work in the stream of the captures, after earlier and before later work of the current stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture, which executes nothing on the device."""
        graph = torch.cuda.CUDAGraph()
        pool = next((other.pool() for other in self._living), None)
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            try:
                with capture(graph, pool=pool, stream=self._stream):
                    work()
            except BaseException:
                torch.cuda.set_stream(current)  # a capture that fails leaves its own
                after_failed_capture(self._device)
                raise
        self._living.add(graph)
        return graph.replay


@cache
def _cuda_recorder(device: torch.device) -> CudaRecorder:
    return CudaRecorder(device)


def recorder_for(device: torch.device) -> Recorder | None:
    """Give the recorder for a device; ``None`` if launching costs next to nothing, as on a CPU."""
    return _cuda_recorder(device) if device.type == "cuda" else None


@dataclass
class _Recording:
    """Inputs at fixed addresses, and the function that replays the work on them once it is recorded."""

    blocks: list[Block]
    labels: Tensor
    replay: Callable[[], None] | None = None


class Replayed:
    """Do the same work for every batch, by replaying a recording of it if that is possible.

    For the first batch of certain shapes (and addresses, if it is ``Batch.fixed``) the work is done eagerly. At the
    second such batch it is recorded, and from then on it is replayed. Blocks that are not fixed are first copied to
    fixed addresses. A smaller batch is the last of an epoch and too rare to be recorded.

    The work is not kept, so that whoever owns both is freed, recordings and all, as soon as nobody uses it.

    Args:
        what: name of the work, for the log.
        recorder: how it is recorded; ``None``: all work is done eagerly.

    Attributes:
        why_eager: why all work is done eagerly; ``None`` if it is replayed, apart from the exceptions above.
    """

    def __init__(self, what: str, recorder: Recorder | None) -> None:
        self._what, self._recorder = what, recorder
        self.why_eager = "only work on a CUDA device is recorded" if recorder is None else None
        self._recordings: dict[Hashable, _Recording] = {}
        self._largest = 0
        self._told = False

    def __call__(self, work: Work, batch: Batch) -> None:
        """Do the work on a batch; it is the same work in every call."""
        self._largest = max(self._largest, len(batch.labels))
        if self._recorder is None or self.why_eager is not None or len(batch.labels) < self._largest:
            self._eagerly(partial(work, batch.blocks, batch.labels))
            return
        key = _key(batch)
        if (recording := self._recordings.get(key)) is not None:
            _fill(recording, batch)
            self._replay(partial(work, recording.blocks, recording.labels), recording, self._recorder)
        elif (recording := self._begin(key, batch)) is not None:
            fixed = partial(work, recording.blocks, recording.labels)
            self._eagerly(partial(self._recorder.warm_up, fixed))
        else:
            self._eagerly(partial(work, batch.blocks, batch.labels))

    def forget(self) -> None:
        """Throw all recordings away, because what the work reads or writes has moved or changed its shape."""
        self._recordings.clear()
        self._largest = 0

    def _eagerly(self, work: Callable[[], None]) -> None:
        """Do work that is not replayed; if the recordings leave no memory for it, drop them first."""
        try:
            work()
            return
        except torch.OutOfMemoryError:
            if not self._recordings:
                raise
        self._give_up("the device has no memory for other batches beside that of a graph")
        work()

    def _begin(self, key: Hashable, batch: Batch) -> _Recording | None:
        """Give a batch's blocks and labels fixed addresses."""
        if len(self._recordings) == MOST:
            self._give_up(f"batches come at more than {MOST} places in memory")
            return None
        try:
            blocks = batch.blocks if batch.fixed else [map_tensors(block, torch.empty_like) for block in batch.blocks]
            recording = _Recording(list(blocks), torch.empty_like(batch.labels))
        except torch.OutOfMemoryError:
            self._give_up("the device has no memory for copies of a batch's block outputs")
            return None
        self._recordings[key] = recording
        _fill(recording, batch)
        return recording

    def _replay(self, work: Callable[[], None], recording: _Recording, recorder: Recorder) -> None:
        """Replay the work, after recording it if that was not done before."""
        if recording.replay is None:
            try:
                recording.replay = recorder.record(work)
            except Exception as error:  # whatever the work does that cannot be recorded, or no memory for it
                self._give_up(_reason(error))
            else:
                if not self._told:
                    log.info("%s is replayed as a CUDA graph.", self._what)
                    self._told = True
        if recording.replay is None:
            work()
        else:
            recording.replay()

    def _give_up(self, reason: str) -> None:
        self.why_eager = reason
        self._recordings.clear()
        log.info("%s is not replayed as a CUDA graph (%s).", self._what, reason)


def _reason(error: Exception) -> str:
    """Say in a line why work was not recorded."""
    first = error.__context__ or error  # the end of a capture that failed raises, too, and says less
    return f"{type(first).__name__}: {str(first).partition(chr(10))[0]}"


def map_tensors(block: Block, change: Callable[[Tensor], Tensor]) -> Block:
    """Give the same kind of block with other tensors."""
    if isinstance(block, Tensor):
        return change(block)
    values = {field.name: getattr(block, field.name) for field in fields(block)}
    changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(block, **changed)


def _tensors(blocks: Sequence[Block]) -> list[Tensor]:
    """List all tensors of blocks."""
    return [value for block in blocks for value in _values(block) if isinstance(value, Tensor)]


def _values(block: Block) -> list[Any]:
    return [block] if isinstance(block, Tensor) else [getattr(block, field.name) for field in fields(block)]


def _fill(recording: _Recording, batch: Batch) -> None:
    """Copy the inputs that are not at the addresses that the recording reads."""
    recording.labels.copy_(batch.labels)
    for recorded, given in zip(_tensors(recording.blocks), _tensors(batch.blocks), strict=True):
        if recorded.data_ptr() != given.data_ptr():
            recorded.copy_(given)


def _key(batch: Batch) -> Hashable:
    """Give a key for batches that can share a recording: forms, shapes, and addresses of tensors that are read in
    place.
    """

    def described(value: Any) -> Hashable:
        if not isinstance(value, Tensor):
            return value
        return value.data_ptr() if batch.fixed else None, value.shape, value.stride(), value.dtype

    forms = tuple((type(block), *map(described, _values(block))) for block in batch.blocks)
    return forms, batch.labels.shape, batch.labels.dtype

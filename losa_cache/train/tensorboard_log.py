"""TensorBoard events of a run: written once an epoch, without a thread. If writing fails, the run goes on."""

import io
import logging
import os
import socket
from pathlib import Path
from time import time
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from losa_cache.files import append

log = logging.getLogger(__name__)


class TensorBoardLog:
    """An event file, from an epoch on.

    Args:
        folder: that it lies in.
        epoch: the first; TensorBoard drops what earlier files of the folder say of it and later ones.
    """

    def __init__(self, folder: Path, epoch: int) -> None:
        name = f"events.out.tfevents.{time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path, self._lost = folder / name, False
        self._add(
            Event(wall_time=time(), file_version="brain.Event:2"),
            Event(wall_time=time(), step=epoch, session_log=SessionLog(status=SessionLog.START)),
        )

    def log(self, metrics: dict[str, Any]) -> None:
        """Add an epoch's numbers."""
        values = [
            Summary.Value(tag=name.replace("_", "/", 1), simple_value=value)
            for name, value in metrics.items()
            if name != "epoch" and isinstance(value, int | float)
        ]
        self._add(*(Event(wall_time=time(), step=metrics["epoch"], summary=Summary(value=[value])) for value in values))

    def _add(self, *events: Event) -> None:
        if self._lost:
            return
        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            writer.write(event.SerializeToString())
        try:
            append(self._path, records.getvalue())
        except OSError as error:
            self._lost = True
            log.warning(
                "TensorBoard's %r cannot be written (%s): the run goes on without it.", str(self._path), error.strerror
            )

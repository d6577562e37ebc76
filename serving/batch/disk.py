"""An output on this machine: lines are appended to one file, which is renamed in the end."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from serving.batch.places import Place
from serving.batch.progress import Found, Progress, read_progress, write_progress
from serving.errors import OperatorError


class Disk:
    """The store of a local output; see `ledger.Store`."""

    save_interval_s = 1.0

    def __init__(self, place: Place) -> None:
        self._place = place
        self._output = Path(place.path)
        self._partial = Path(place.beside("partial").path)
        self._stream: BinaryIO | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """By a lock that ends with this process, however it ends."""
        path = Path(self._place.beside("lock").path)
        with path.open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OperatorError(f"another command is writing {self._place}") from error
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def look(self) -> Found:
        return Found(
            output=str(self._place),
            output_bytes=self._place.size(),
            partial_bytes=self._place.beside("partial").size(),
            progress=read_progress(self._place),
        )

    def begin(self, progress: Progress) -> None:
        write_progress(self._place, progress)
        self._sync_folder()
        self._stream = self._partial.open("r+b" if progress.bytes else "wb")
        self._stream.truncate(progress.bytes)
        self._stream.seek(progress.bytes)

    def append(self, line: bytes) -> None:
        self._lines.write(line)

    def keep(self, progress: Progress) -> None:
        self._lines.flush()
        os.fsync(self._lines.fileno())
        write_progress(self._place, progress)
        self._sync_folder()

    def name(self, progress: Progress) -> None:  # noqa: ARG002  the bytes are counted as they were written
        self._partial.replace(self._output)
        self._sync_folder()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def settle(self, progress: Progress) -> bool:
        return self._place.crc() == progress.crc

    @property
    def _lines(self) -> BinaryIO:
        assert self._stream is not None, "begin comes first"
        return self._stream

    def _sync_folder(self) -> None:
        """A rename lasts once the folder does."""
        folder = os.open(self._output.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

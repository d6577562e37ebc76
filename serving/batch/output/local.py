"""An output on this machine: lines are appended to one file, which is renamed in the end.

Others may be able to write in its folder. So no link is followed on the way to a file, and what was opened is what has
the name afterwards.
"""

import errno
import fcntl
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from serving.batch.location import BLOCK_BYTES, Place
from serving.batch.output.checkpoint import Found, Progress, damaged, read_progress, write_progress
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
        with self._lock(path):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def _lock(self, path: Path) -> BinaryIO:
        """The file, locked. Its last owner may have removed it meanwhile: then another file has the name."""
        while True:
            lock = _open(path)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.close()
                raise OperatorError(f"another command is writing {self._place}") from error
            if _is_at(lock, path):
                return lock
            lock.close()

    def look(self) -> Found:
        return Found(
            output=str(self._place),
            output_bytes=self._place.size(),
            partial_bytes=self._place.beside("partial").size(),
            progress=read_progress(self._place),
        )

    def blocks(self) -> Iterator[bytes]:
        self._lines.seek(0)
        while block := self._lines.read(BLOCK_BYTES):
            yield block

    def begin(self, progress: Progress) -> None:
        write_progress(self._place, progress)
        self._sync_folder()
        self._lines.truncate(progress.bytes)
        self._lines.seek(progress.bytes)

    def append(self, line: bytes) -> None:
        self._lines.write(line)

    def keep(self, progress: Progress) -> None:
        self._lines.flush()
        os.fsync(self._lines.fileno())
        write_progress(self._place, progress)
        self._sync_folder()

    def name(self, progress: Progress) -> None:
        crc = 0
        for block in self.blocks():
            crc = zlib.crc32(block, crc)
        if crc != progress.crc or not _is_at(self._lines, self._partial):
            raise OperatorError(damaged(str(self._place.beside("partial"))))
        self._partial.replace(self._output)
        self._sync_folder()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def settle(self, progress: Progress) -> bool:
        return self._place.crc() == progress.crc

    @property
    def _lines(self) -> BinaryIO:
        if self._stream is None:
            self._stream = _open(self._partial)
        return self._stream

    def _sync_folder(self) -> None:
        """A rename lasts once the folder does."""
        folder = os.open(self._output.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _open(path: Path) -> BinaryIO:
    """The file of that name, for reading and writing; made if there is none. Raises `OperatorError` for anything else.

    What lies in it stays.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OperatorError(f"cannot write {path}: it is a link") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OperatorError(f"cannot write {path}: it is not a file")
    return os.fdopen(handle, "r+b")


def _is_at(stream: BinaryIO, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    except FileNotFoundError:
        return False

"""The input as a stream of rows: never read whole, and begun anywhere that a checkpoint says.

JSON Lines, from any address that `places` knows. Empty lines are no rows.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serving.batch.places import UNREADABLE, Place, locate, version_of
from serving.batch.rows import Row
from serving.errors import OperatorError

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """An input that is there."""

    address: str
    size: int
    """Bytes."""
    version: str
    """Changes when the content does, as far as the file system tells."""
    max_line_bytes: int
    """Of a longer line only that much is kept, and one byte more: its row is refused."""

    def rows(self, number: int, offset: int) -> Iterator[Row]:
        """The rows from byte `offset` on, where row `number` begins. Raises `OperatorError`."""
        try:
            with _open(locate(self.address)) as stream:
                stream.seek(offset)
                for data, end in self._lines(stream, offset):
                    if data.strip():
                        yield Row(number, data, end, cut=len(data) > self.max_line_bytes)
                        number += 1
        except OSError as error:
            raise OperatorError(f"cannot read {self.address}: {error}") from error

    def _lines(self, stream: io.BufferedReader, offset: int) -> Iterator[tuple[bytes, int]]:
        while line := stream.readline(self.max_line_bytes + 1):
            offset += len(line)
            if not line.endswith(b"\n"):
                offset += _skip_line(stream)
            yield line.rstrip(b"\r\n"), offset


def open_source(address: str, max_line_bytes: int) -> Source:
    """See that the input is there. Raises `OperatorError`; also when it holds no rows."""
    try:
        info = locate(address).info()
    except UNREADABLE as error:
        raise OperatorError(f"cannot read {address}: {error}") from error
    if info["type"] != "file":
        raise OperatorError(f"cannot read {address}: it is a {info['type']}, not a file")
    source = Source(address, int(info["size"]), version_of(info), max_line_bytes)
    if next(source.rows(0, 0), None) is None:
        raise OperatorError(f"{address} has no rows")
    return source


def _open(place: Place) -> io.BufferedReader:
    return io.BufferedReader(_Raw(place.open()), _BUFFER_BYTES)


class _Raw(io.RawIOBase):
    """A file of fsspec as the standard library wants it, for lines of bounded length."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _skip_line(stream: io.BufferedReader) -> int:
    """Read on to the end of the line, keeping nothing; returns the bytes passed."""
    skipped = 0
    while part := stream.readline(_BUFFER_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped

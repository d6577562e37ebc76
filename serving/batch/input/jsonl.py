"""The input as a stream of rows: never read whole, and begun anywhere that a checkpoint says.

JSON Lines, from a file or a folder of them at any address that `places` knows. Empty lines are no rows.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serving.batch.location import UNUSABLE, File, Place, files_at, name_of
from serving.batch.rows import Row
from serving.errors import OperatorError

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """Files that are there, one after the other. Offsets are bytes of them all."""

    files: tuple[File, ...]
    max_line_bytes: int
    """Of a longer line only that much is kept, and one byte more: its row is refused."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)

    def facts(self) -> list[object]:
        """What the rows depend on."""
        return [self.max_line_bytes, *(file.facts() for file in self.files)]

    def rows(self, number: int, offset: int) -> Iterator[Row]:
        """The rows from byte `offset` on, where row `number` begins. Raises `OperatorError`."""
        begin = 0
        for file in self.files:
            if offset < begin + file.size:
                for data, end in self._lines(file.place, max(0, offset - begin)):
                    if data.strip():
                        yield Row(number, data, begin + end, cut=len(data) > self.max_line_bytes)
                        number += 1
            begin += file.size

    def _lines(self, place: Place, offset: int) -> Iterator[tuple[bytes, int]]:
        """Each line from byte `offset` of one file on, and where it ends there."""
        try:
            with io.BufferedReader(_Raw(place.open()), _BUFFER_BYTES) as stream:
                stream.seek(offset)
                while line := stream.readline(self.max_line_bytes + 1):
                    offset += len(line)
                    if not line.endswith(b"\n"):
                        offset += _skip_line(stream)
                    yield line.rstrip(b"\r\n"), offset
        except UNUSABLE as error:
            raise place.cannot("read", error) from error


def open_source(address: str, max_line_bytes: int) -> Source:
    """See that the input is there. Raises `OperatorError`; also when it holds no rows."""
    source = Source(files_at(address), max_line_bytes)
    if next(source.rows(0, 0), None) is None:
        raise OperatorError(f"{name_of(address)} has no rows")
    return source


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


def _skip_line(stream: io.BufferedIOBase) -> int:
    """Read on to the end of the line, keeping nothing; returns the bytes passed."""
    skipped = 0
    while part := stream.readline(_BUFFER_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped

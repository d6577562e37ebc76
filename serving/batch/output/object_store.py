"""An output at an address, where files are written whole and never appended to, as in S3.

OUTPUT.partial is a folder there: each checkpoint adds one file with the lines since the last, named by its first byte.
In the end they are copied into one, whose name appears when it is whole. Nothing there can be locked in a way that a
kill would unlock, so a command signs its checkpoints, and stops when it finds one that another has signed.
"""

import uuid
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress

import msgspec

from serving.batch.location import BLOCK_BYTES, Place
from serving.batch.output.checkpoint import Found, Progress, damaged, read_progress, write_progress
from serving.errors import OperatorError


class Objects:
    """The store of an output elsewhere; see `ledger.Store`. Lines since the last checkpoint are in memory."""

    save_interval_s = 10.0

    def __init__(self, place: Place) -> None:
        self._place = place
        self._folder = place.beside("partial")
        self._lines = bytearray()
        self._kept = 0
        """Bytes of the output that are there."""
        self._signature = uuid.uuid4().hex

    def locked(self) -> AbstractContextManager[None]:
        """Not at the start: see `keep`."""
        return nullcontext()

    def look(self) -> Found:
        parts = self._parts()
        return Found(
            output=str(self._place),
            output_bytes=self._place.size(),
            partial_bytes=_contiguous(parts) if parts else None,
            progress=read_progress(self._place),
        )

    def blocks(self) -> Iterator[bytes]:
        parts, end = self._parts(), 0
        while size := parts.get(end):
            with self._place.system.open(self._part(end), "rb") as stream:
                while block := stream.read(BLOCK_BYTES):
                    yield block
            end += size

    def begin(self, progress: Progress) -> None:
        self._sign(progress)
        for first in self._parts():
            if first >= progress.bytes:
                self._place.system.rm_file(self._part(first))
        self._place.system.makedirs(self._folder.path, exist_ok=True)
        self._kept = progress.bytes

    def append(self, line: bytes) -> None:
        self._lines += line

    def keep(self, progress: Progress) -> None:
        """Also raises `OperatorError`, when another command has begun to write here."""
        found = read_progress(self._place)
        if found is None or found.writer != self._signature:
            raise OperatorError(f"another command is writing {self._place}")
        if self._lines:
            self._place.system.pipe_file(self._part(self._kept), bytes(self._lines))
            self._kept += len(self._lines)
            self._lines.clear()
        self._sign(progress)

    def name(self, progress: Progress) -> None:
        crc = 0
        with self._place.create() as output:
            for block in self.blocks():
                crc = zlib.crc32(block, crc)
                output.write(block)
            if crc != progress.crc:
                raise OperatorError(damaged(str(self._folder)))
        self._remove_parts()

    def close(self) -> None:
        """There is nothing to let go of."""

    def settle(self, progress: Progress) -> bool:
        """A kill may have left the parts beside an output that has its name."""
        if self._place.crc() != progress.crc:
            return False
        self._remove_parts()
        return True

    def _sign(self, progress: Progress) -> None:
        write_progress(self._place, msgspec.structs.replace(progress, writer=self._signature))

    def _part(self, first: int) -> str:
        return f"{self._folder.path}/{first:020}"

    def _parts(self) -> dict[int, int]:
        """First byte to size of each."""
        system = self._place.system
        system.invalidate_cache()
        try:
            entries = system.ls(self._folder.path, detail=True)
        except FileNotFoundError:
            return {}
        named = ((str(entry["name"]).rpartition("/")[2], entry["size"]) for entry in entries)
        return {int(name): int(size) for name, size in named if name.isdigit()}

    def _remove_parts(self) -> None:
        with suppress(FileNotFoundError):
            self._place.system.rm(self._folder.path, recursive=True)


def _contiguous(parts: dict[int, int]) -> int:
    """Bytes that are there from the first on."""
    end = 0
    while size := parts.get(end):
        end += size
    return end

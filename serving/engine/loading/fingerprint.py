"""Which model a folder holds, told by what is in its files: names, sizes and times of change are the same for many.

Images set all times to 0, and models of one family have equal names and sizes. Of each tensor a sample is read, as all
of it would take as long as loading does: what differs in fewer bytes than lie between two pieces of the sample is seen
by the time of change only, which therefore counts too.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from serving.engine.loading.checkpoint import MAX_HEADER_BYTES, Checkpoint, StoredTensor
from serving.errors import ModelError

PIECES = 8
"""Of a tensor, evenly apart, the first and the last byte among them."""
PIECE_BYTES = 4096
"""A page of a file: less would not be read sooner."""


def fingerprint(checkpoint: Checkpoint) -> bytes:
    """A hash of config.json, of every header whole, and of up to 32 KiB of every tensor: 32 bytes.

    The same on every node whose files are the same, times of change included. Raises `ModelError`.
    """
    digest = hashlib.sha256(_read(checkpoint.folder / "config.json"))
    for file in checkpoint.files:
        digest.update(_fingerprint_of(file, [stored for stored in checkpoint.tensors.values() if stored.file == file]))
    return digest.digest()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from error


def _fingerprint_of(file: Path, tensors: list[StoredTensor]) -> bytes:
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            digest = hashlib.sha256(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
            header = 8 + min(int.from_bytes(stream.read(8), "little"), MAX_HEADER_BYTES)
            for begin, size in [(0, header), *(piece for stored in tensors for piece in pieces(stored))]:
                found = os.pread(stream.fileno(), size, begin)
                if len(found) != size:
                    raise ModelError(f"{file}: was cut short while it was read")
                digest.update(found)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from error
    return digest.digest()


def pieces(stored: StoredTensor) -> Iterator[tuple[int, int]]:
    """Where the sample of a tensor lies in its file, as (begin, bytes): all of a small one."""
    size = stored.end - stored.begin
    if size <= PIECES * PIECE_BYTES:
        yield stored.begin, size
        return
    for piece in range(PIECES):
        yield stored.begin + (size - PIECE_BYTES) * piece // (PIECES - 1), PIECE_BYTES

"""What is done for good: the output so far, and a checkpoint that says how far it counts.

Beside OUTPUT lie OUTPUT.partial and OUTPUT.progress. Rows are appended to the first and forced to disk; then the second
is replaced atomically. Whatever lies in the first beyond what the second counts was never promised, and is cut off at
the next start. The final name appears by one rename, after the checkpoint has said that all is there; the checkpoint
stays, so that a second start of the same command finds its work done. `decide` holds every case; one writer at a time.
"""

import fcntl
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from serving.batch.rows import Result
from serving.errors import OperatorError

_BLOCK_BYTES = 1 << 20

Start = Literal["begin", "go on", "rename", "done"]


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint: all rows before `rows` are answered, in the first `bytes` of the output."""

    job: str
    """Stands for the input and for everything that the answers depend on."""
    rows: int = 0
    offset: int = 0
    """Where row `rows` begins in the input, in bytes."""
    bytes: int = 0
    crc: int = 0
    """CRC-32 of those bytes."""
    failed: int = 0
    """Rows whose answer is an error."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    complete: bool = False
    """There are no more rows."""

    def after(self, result: Result, end: int) -> "Progress":
        """With one row more, whose input ends at `end`."""
        return msgspec.structs.replace(
            self,
            rows=self.rows + 1,
            offset=end,
            bytes=self.bytes + len(result.line),
            crc=zlib.crc32(result.line, self.crc),
            failed=self.failed + result.failed,
            prompt_tokens=self.prompt_tokens + result.prompt_tokens,
            completion_tokens=self.completion_tokens + result.completion_tokens,
        )


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What lies there at the start. Sizes in bytes; None: there is no such file."""

    output: str
    """Its name, for sentences."""
    output_bytes: int | None = None
    partial_bytes: int | None = None
    progress: Progress | None = None


def decide(found: Found, job: str, *, resume: bool, overwrite: bool) -> Start:
    """Whether to begin, to go on, only to give the output its name, or that nothing is left to do.

    `resume` goes on with what another job has left, `overwrite` replaces an output. Raises `OperatorError` when what
    lies there is not to be touched without being told so.
    """
    known, partial = found.progress, found.partial_bytes
    ours = known is not None and known.job == job
    if ours and known and known.complete and partial is None and found.output_bytes == known.bytes and not overwrite:
        return "done"
    if found.output_bytes is not None and not overwrite:
        raise OperatorError(f"{found.output} exists, and is not what this job wrote; --overwrite replaces it")
    if known is not None and partial is not None and partial >= known.bytes and (ours or resume):
        return "rename" if known.complete and ours else "go on"
    if partial is not None and not overwrite:
        whose = "is shorter than its checkpoint says" if ours else "was left by another job"
        way = "" if ours else ", --resume goes on with it all the same"
        raise OperatorError(f"{found.output}.partial {whose}; --overwrite begins anew{way}")
    return "begin"


class Ledger:
    """The files of one job, open for writing. Use `open_ledger`."""

    def __init__(self, output: Path, progress: Progress, stream: BinaryIO) -> None:
        self.progress = progress
        self._output = output
        self._stream = stream
        self.saved = progress
        """What a second start would go on from."""

    def append(self, result: Result, end: int) -> None:
        """Take the next row's line. It counts from the next `save` on."""
        with _writing(self._output):
            self._stream.write(result.line)
        self.progress = self.progress.after(result, end)

    def save(self) -> None:
        """Make all that was appended last: first the lines, then the checkpoint that counts them."""
        if self.progress == self.saved:
            return
        with _writing(self._output):
            self._stream.flush()
            os.fsync(self._stream.fileno())
            _write_progress(self._output, self.progress)
        self.saved = self.progress

    def finish(self) -> None:
        """All rows are here: the output gets its name."""
        self.progress = msgspec.structs.replace(self.progress, complete=True)
        self.save()
        with _writing(self._output):
            _beside(self._output, "partial").replace(self._output)
            _sync_folder(self._output)

    def close(self) -> None:
        """Let go of the files; what was not saved does not count."""
        with _writing(self._output):
            self._stream.close()


@contextmanager
def open_ledger(output: Path, job: str, *, resume: bool, overwrite: bool) -> Iterator[Ledger | None]:
    """The ledger, at the row where the job stands; None when there is nothing left to do.

    Raises `OperatorError` when it cannot be written, when another command writes it, and as `decide` does.
    """
    with _locked(output):
        with _writing(output):
            ledger = _open(output, job, resume=resume, overwrite=overwrite)
        try:
            yield ledger
        finally:
            if ledger is not None:
                ledger.close()


def _open(output: Path, job: str, *, resume: bool, overwrite: bool) -> Ledger | None:
    found = look(output)
    start = decide(found, job, resume=resume, overwrite=overwrite)
    known = found.progress
    if start == "done" and known is not None:
        if _crc(output) != known.crc:
            raise OperatorError(f"{output} exists, and is not what this job wrote; --overwrite replaces it")
        return None
    if start == "begin" or known is None:
        progress = Progress(job=job)
    else:
        progress = msgspec.structs.replace(known, job=job, complete=False)
    _write_progress(output, progress)
    stream = _beside(output, "partial").open("wb" if start == "begin" else "r+b")
    stream.truncate(progress.bytes)
    stream.seek(progress.bytes)
    ledger = Ledger(output, progress, stream)
    if start == "rename":
        ledger.finish()
        ledger.close()
        return None
    return ledger


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    with _writing(output):
        path = _beside(output, "lock")
        lock = path.open("wb")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OperatorError(f"another command is writing {output}") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """What the file system refuses becomes a sentence."""
    try:
        yield
    except OSError as error:
        raise OperatorError(f"cannot write {output}: {error.strerror or error}") from error


def look(output: Path) -> Found:
    """What lies there now. Raises `OperatorError` when the checkpoint cannot be read."""
    path = _beside(output, "progress")
    try:
        progress = msgspec.json.decode(path.read_bytes(), type=Progress) if path.exists() else None
    except msgspec.DecodeError as error:
        raise OperatorError(f"{path} is not a checkpoint: {error}; remove it to begin anew") from error
    partial = _beside(output, "partial")
    return Found(output=str(output), output_bytes=_size(output), partial_bytes=_size(partial), progress=progress)


def _write_progress(output: Path, progress: Progress) -> None:
    fresh = _beside(output, "progress.new")
    with fresh.open("wb") as stream:
        stream.write(msgspec.json.encode(progress))
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(_beside(output, "progress"))
    _sync_folder(output)


def _sync_folder(output: Path) -> None:
    folder = os.open(output.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _beside(output: Path, ending: str) -> Path:
    return output.with_name(f"{output.name}.{ending}")


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc

"""How far a job is, and what a start does with what it finds of it."""

import zlib
from typing import Literal

import msgspec

from serving.batch.places import Place
from serving.batch.rows import Result
from serving.errors import OperatorError

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
    writer: str = ""
    """The command that wrote it, where nothing can be locked."""

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
    if ours and known and known.complete and found.output_bytes == known.bytes and not overwrite:
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


def read_progress(output: Place) -> Progress | None:
    """The checkpoint beside the output. Raises `OperatorError` when it is none, and what reading it raises."""
    place = output.beside("progress")
    try:
        return msgspec.json.decode(place.system.cat_file(place.path), type=Progress)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise OperatorError(f"{place} is not a checkpoint: {error}; remove it to begin anew") from error


def write_progress(output: Place, progress: Progress) -> None:
    """Replace it, atomically where the file system can."""
    with output.beside("progress").create() as stream:
        stream.write(msgspec.json.encode(progress))

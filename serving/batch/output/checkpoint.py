"""How far a job is, and what a start does with what it finds of it.

A checkpoint counts the bytes of the output and has their checksum; it also carries some of those before it, spread over
the output, to go back to when the bytes turn out to be others. On disk it is a line of JSON and a line with the
checksum of that: one that is torn or was changed is none.
"""

import zlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec

from serving.batch.location import Place
from serving.batch.rows import Result
from serving.errors import OperatorError

Start = Literal["begin", "go on", "rename", "done"]


Count = Annotated[int, msgspec.Meta(ge=0)]

EARLIER = 32
"""Checkpoints to go back to. Between two of them lies then about that part of the output."""
MAX_FILE_BYTES = 1 << 20
"""A checkpoint is some kilobytes."""


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """All rows before `rows` are answered, in the first `bytes` of the output."""

    rows: Count = 0
    offset: Count = 0
    """Where row `rows` begins in the input, in bytes."""
    bytes: Count = 0
    crc: Count = 0
    """CRC-32 of those bytes."""
    failed: Count = 0
    """Rows whose answer is an error."""
    prompt_tokens: Count = 0
    completion_tokens: Count = 0


class Progress(Mark, frozen=True, kw_only=True):
    """A checkpoint."""

    job: str
    """Stands for the input and for everything that the answers depend on."""
    complete: bool = False
    """There are no more rows."""
    writer: str = ""
    """The command that wrote it, where nothing can be locked."""
    earlier: tuple[Mark, ...] = ()
    """Checkpoints before it, in their order; at most `EARLIER`."""

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

    def remembering(self, saved: "Progress") -> "Progress":
        """With `saved`, the checkpoint before this one, among the earlier ones; the one missed least makes room."""
        if not saved.bytes:
            return self
        marks = [*self.earlier, _mark(saved)]
        if len(marks) > EARLIER:
            begins = [0, *(mark.bytes for mark in marks), self.bytes]
            del marks[min(range(len(marks)), key=lambda place: begins[place + 2] - begins[place])]
        return msgspec.structs.replace(self, earlier=tuple(marks))

    def marks(self) -> tuple[Mark, ...]:
        """All that it knows of, itself the last."""
        return *self.earlier, _mark(self)

    def back_to(self, mark: Mark, job: str) -> "Progress":
        """The checkpoint that `mark`, one of `marks`, stands for, in the hands of `job`."""
        before = tuple(one for one in self.earlier if one.bytes < mark.bytes)
        return Progress(job=job, earlier=before, **msgspec.structs.asdict(mark))


def _mark(progress: Progress) -> Mark:
    return Mark(**{name: getattr(progress, name) for name in Mark.__struct_fields__})


def last_good(blocks: Iterable[bytes], marks: Sequence[Mark]) -> Mark:
    """The last of `marks`, in the order of their bytes, that the content of `blocks` agrees with, or the beginning.

    Reads no further than to the first that it does not agree with.
    """
    good, crc, begin, left = Mark(), 0, 0, list(marks)
    for block in blocks:
        while left and left[0].bytes <= begin + len(block):
            mark = left.pop(0)
            if zlib.crc32(block[: mark.bytes - begin], crc) != mark.crc:
                return good
            good = mark
        if not left:
            break
        crc, begin = zlib.crc32(block, crc), begin + len(block)
    return good


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
    if known is not None and partial is not None and (resume or (ours and partial >= known.bytes)):
        return "rename" if known.complete and ours else "go on"
    if partial is not None and not overwrite:
        if ours:
            raise OperatorError(damaged(f"{found.output}.partial", "is shorter than its checkpoint says"))
        left = f"{found.output}.partial was left by another job"
        raise OperatorError(f"{left}; --overwrite starts over, --resume continues with it all the same")
    return "begin"


def damaged(place: str, how: str = "is not what was written there") -> str:
    """The sentence about lines that a checkpoint does not agree with."""
    return f"{place} {how}; --resume computes again what comes after the last checkpoint that holds, --overwrite all"


def read_progress(output: Place) -> Progress | None:
    """The checkpoint beside the output. Raises `OperatorError` when it is none, and what reading it raises."""
    place = output.beside("progress")
    try:
        with place.open() as stream:
            content = bytes(stream.read(MAX_FILE_BYTES))
        return _decode(content)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise OperatorError(f"{place} is not a checkpoint: {error}; remove it to start over") from error


def write_progress(output: Place, progress: Progress) -> None:
    """Replace it, atomically where the file system can."""
    text = msgspec.json.encode(progress)
    with output.beside("progress").create() as stream:
        stream.write(b"%b\n%08x\n" % (text, zlib.crc32(text)))


def _decode(content: bytes) -> Progress:
    """Raises `msgspec.DecodeError`. One without a second line is of a version that wrote none."""
    text, line, checksum = content.partition(b"\n")
    if line and checksum != b"%08x\n" % zlib.crc32(text):
        raise msgspec.DecodeError("it was changed or is not whole")
    return msgspec.json.decode(text, type=Progress)

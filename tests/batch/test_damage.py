"""Lines that are not what the checkpoint counts: told before anything is added, and computed again when asked to."""

import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batch.location import Place, locate
from serving.batch.output.checkpoint import EARLIER, Mark, Progress, last_good, read_progress
from serving.batch.output.writer import Ledger, open_ledger
from serving.batch.rows import Result
from serving.errors import OperatorError

ROWS = 100
TOLD = "is not what was written there; --resume computes again"


def text(row: int) -> bytes:
    return b"answer %d\n" % row


WHOLE = b"".join(map(text, range(ROWS)))


@pytest.fixture(params=["local", "elsewhere"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return locate(str(tmp_path / "out") if request.param == "local" else f"memory://{uuid.uuid4().hex}/out")


@contextmanager
def opened(output: Place, *, job: str = "a", resume: bool = False, overwrite: bool = False) -> Iterator[Ledger]:
    with open_ledger(output, job, resume=resume, overwrite=overwrite) as ledger:
        assert ledger is not None
        yield ledger


def write(ledger: Ledger, until: int = ROWS) -> None:
    """The rows that are left, with a checkpoint after each."""
    for row in range(ledger.progress.rows, until):
        ledger.append(Result(text(row), failed=False), 10 * (row + 1))
        ledger.save()


def begun(output: Place, rows: int, *, complete: bool = False) -> None:
    with opened(output) as ledger:
        write(ledger, rows)
        if complete:
            ledger.progress = msgspec.structs.replace(ledger.progress, complete=True)
            ledger.save()


def files(output: Place) -> list[str]:
    """Those with the lines so far."""
    return sorted(output.system.find(f"{output.path}.partial"))


def lines(output: Place) -> bytes:
    return b"".join(output.system.cat_file(path) for path in files(output))


def change(output: Place, row: int) -> None:
    """One letter of one answer."""
    at = len(b"".join(map(text, range(row))))
    for path in files(output):
        content = bytearray(output.system.cat_file(path))
        if at < len(content):
            content[at] ^= 1
            output.system.pipe_file(path, bytes(content))
            return
        at -= len(content)
    raise AssertionError("there is no such row")


def content(place: Place) -> bytes:
    return bytes(place.system.cat_file(place.path))


def test_changed_lines_are_told_and_nothing_is_added_to_them(output: Place) -> None:
    begun(output, 50)
    change(output, 20)
    before = lines(output)
    with pytest.raises(OperatorError, match=TOLD), opened(output):
        pass
    assert lines(output) == before
    assert output.size() is None


def test_changed_lines_never_get_the_name_of_a_job_that_had_only_that_to_do(output: Place) -> None:
    begun(output, ROWS, complete=True)
    change(output, 99)
    with pytest.raises(OperatorError, match=TOLD), opened(output):
        pass
    assert output.size() is None


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("row", [0, 20, 49, 99])
def test_resume_computes_anew_what_follows_the_last_checkpoint_that_holds(
    output: Place, row: int, complete: bool
) -> None:
    begun(output, ROWS, complete=complete)
    change(output, row)
    with opened(output, resume=True) as ledger:
        kept = ledger.progress.rows
        assert row - 3 * ROWS // EARLIER <= kept <= row
        assert (ledger.progress.offset, ledger.progress.complete) == (10 * kept, False)
        assert lines(output) == b"".join(map(text, range(kept)))
        write(ledger)
        ledger.finish()
    assert content(output) == WHOLE


def test_overwrite_computes_all_anew(output: Place) -> None:
    begun(output, 50)
    change(output, 20)
    with opened(output, overwrite=True) as ledger:
        assert ledger.progress == Progress(job="a")
        write(ledger)
        ledger.finish()
    assert content(output) == WHOLE


def test_lines_that_were_lost_at_the_end_are_computed_anew(output: Place) -> None:
    begun(output, 50)
    if output.is_local:
        output.system.pipe_file(files(output)[0], b"".join(map(text, range(30)))[:-1])
    else:
        output.system.rm_file(files(output)[29])
    with pytest.raises(OperatorError, match="is shorter than its checkpoint says; --resume"), opened(output):
        pass
    with opened(output, resume=True) as ledger:
        assert 29 - 3 * 50 // EARLIER <= ledger.progress.rows <= 29
        write(ledger)
        ledger.finish()
    assert content(output) == WHOLE


def test_another_jobs_lines_are_held_against_their_checkpoint_too(output: Place) -> None:
    begun(output, 50)
    change(output, 49)
    with opened(output, job="b", resume=True) as ledger:
        assert (ledger.progress.job, ledger.progress.rows) == ("b", 49)


def test_lines_that_change_while_the_job_runs_never_get_the_name(output: Place) -> None:
    with opened(output) as ledger:
        write(ledger)
        change(output, 3)
        with pytest.raises(OperatorError, match=TOLD):
            ledger.finish()
    assert output.size() is None
    with opened(output, resume=True) as ledger:
        assert ledger.progress.rows <= 3
        write(ledger)
        ledger.finish()
    assert content(output) == WHOLE


@pytest.mark.parametrize("cut", [1, 9, 60])
def test_a_torn_checkpoint_is_a_sentence(output: Place, cut: int) -> None:
    begun(output, 50)
    progress = output.beside("progress")
    whole = content(progress)
    output.system.pipe_file(progress.path, whole[:-cut])
    with pytest.raises(OperatorError, match="is not a checkpoint"), opened(output):
        pass


def test_a_changed_checkpoint_is_a_sentence(output: Place) -> None:
    begun(output, 50)
    progress = output.beside("progress")
    output.system.pipe_file(progress.path, content(progress).replace(b'"rows":50', b'"rows":51'))
    with pytest.raises(OperatorError, match="is not a checkpoint: it was changed or is not whole"), opened(output):
        pass


@pytest.mark.parametrize(
    "hostile",
    [b"null", b"[]", b'{"job":"a","bytes":-1}', b'{"job":"a","rows":1e400}', b"[" * 100_000, b"\xff", b" " * (2 << 20)],
)
def test_a_hostile_checkpoint_is_a_sentence(output: Place, hostile: bytes) -> None:
    output.system.makedirs(posix_parent(output), exist_ok=True)
    output.system.pipe_file(output.beside("progress").path, hostile)
    with pytest.raises(OperatorError, match="is not a checkpoint"), opened(output):
        pass


def posix_parent(place: Place) -> str:
    return place.path.rpartition("/")[0]


def test_a_checkpoint_of_a_version_that_wrote_no_checksum_still_counts(output: Place) -> None:
    begun(output, 50)
    progress = output.beside("progress")
    output.system.pipe_file(progress.path, content(progress).partition(b"\n")[0])
    with opened(output) as ledger:
        assert ledger.progress.rows == 50


def test_checkpoints_to_go_back_to_stay_few_and_lie_evenly() -> None:
    saved = Progress(job="a")
    for row in range(5000):
        saved = saved.after(Result(text(row), failed=False), row).remembering(saved)
    ends = [0, *(mark.bytes for mark in saved.marks())]
    assert len(saved.earlier) == EARLIER
    assert ends == sorted(ends)
    assert max(b - a for a, b in pairwise(ends)) < 4 * saved.bytes / EARLIER
    assert read_written(saved) == saved


def read_written(progress: Progress) -> Progress:
    return msgspec.json.decode(msgspec.json.encode(progress), type=Progress)


@given(st.binary(max_size=64), st.lists(st.integers(0, 64), max_size=5), st.integers(1, 64), st.integers(0, 63))
def test_the_last_good_mark_is_the_last_before_a_change(whole: bytes, ends: list[int], block: int, at: int) -> None:
    marks = [Mark(bytes=end, crc=zlib.crc32(whole[:end])) for end in sorted(ends) if end <= len(whole)]
    changed = bytearray(whole)
    if at < len(whole):
        changed[at] ^= 0x80
    blocks = [bytes(changed[begin : begin + block]) for begin in range(0, len(changed), block)]
    expected = [Mark(), *(mark for mark in marks if mark.bytes <= at)][-1] if at < len(whole) else [Mark(), *marks][-1]
    assert last_good(blocks, marks).bytes == expected.bytes


def test_what_is_read_is_no_more_than_the_first_difference_needs() -> None:
    def blocks() -> Iterator[bytes]:
        yield b"other"
        raise AssertionError("read on")

    assert last_good(blocks(), [Mark(bytes=3, crc=zlib.crc32(b"one"))]) == Mark()


def test_the_checkpoint_beside_a_finished_output_reads_back(output: Place) -> None:
    with opened(output) as ledger:
        write(ledger)
        ledger.finish()
    progress = read_progress(output)
    assert progress is not None
    assert (progress.complete, progress.bytes) == (True, len(WHOLE))

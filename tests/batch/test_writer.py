"""What counts after a kill, and what is never touched unasked: here, and at addresses of fsspec and of Arrow."""

import posixpath
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from serving.batch.location import Place, locate
from serving.batch.output.checkpoint import Found, Progress, decide, read_progress
from serving.batch.output.writer import Ledger, open_ledger
from serving.batch.rows import Result
from serving.errors import OperatorError
from tests.batch.bucket import open_bucket

HALF = Progress(job="a", rows=2, offset=20, bytes=8, crc=1)
WHOLE = Progress(job="a", rows=2, offset=20, bytes=8, crc=1, complete=True)


def found(output: int | None, partial: int | None, progress: Progress | None) -> Found:
    return Found(output="out", output_bytes=output, partial_bytes=partial, progress=progress)


@pytest.mark.parametrize(
    ("there", "flags", "start"),
    [
        (found(None, None, None), "", "begin"),
        (found(None, None, HALF), "", "begin"),
        (found(None, 8, HALF), "", "go on"),
        (found(None, 11, HALF), "", "go on"),
        (found(5, 11, HALF), "overwrite", "go on"),
        (found(None, 8, WHOLE), "", "rename"),
        (found(8, None, WHOLE), "", "done"),
        (found(8, 8, WHOLE), "", "done"),
        (found(8, None, WHOLE), "overwrite", "begin"),
        (found(9, None, WHOLE), "overwrite", "begin"),
        (found(5, None, None), "overwrite", "begin"),
        (found(None, 8, Progress(job="b", rows=2, bytes=8)), "resume", "go on"),
        (found(None, 8, Progress(job="b", rows=2, bytes=8)), "overwrite", "begin"),
        (found(None, 7, HALF), "overwrite", "begin"),
        (found(None, 7, HALF), "resume", "go on"),
    ],
)
def test_a_start_follows_from_what_lies_there(there: Found, flags: str, start: str) -> None:
    assert decide(there, "a", resume="resume" in flags, overwrite="overwrite" in flags) == start


@pytest.mark.parametrize(
    ("there", "sentence"),
    [
        (found(5, None, None), "out exists"),
        (found(9, None, WHOLE), "out exists"),
        (found(8, None, Progress(job="b", bytes=8, complete=True)), "out exists"),
        (found(5, 8, HALF), "out exists"),
        (found(None, 8, Progress(job="b", rows=2, bytes=8)), "left by another job"),
        (found(None, 7, HALF), "shorter than its checkpoint"),
        (found(None, 7, None), "left by another job"),
    ],
)
def test_what_is_not_this_jobs_is_refused(there: Found, sentence: str) -> None:
    with pytest.raises(OperatorError, match=sentence):
        decide(there, "a", resume=False, overwrite=False)


@pytest.fixture(params=["local", "fsspec", "arrow"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where nothing lies yet."""
    if request.param == "local":
        yield locate(str(tmp_path / "out"))
    elif request.param == "fsspec":
        yield locate(f"memory://{uuid.uuid4().hex}/out")
    else:
        with open_bucket({}) as bucket:
            yield locate(bucket.address("folder/out"))


def around(output: Place) -> list[str]:
    """Names of the files beside it and below; folders that hold none do not count."""
    folder = posixpath.dirname(output.path)
    return sorted(posixpath.relpath(path, folder) for path in output.system.find(folder) if not path.endswith("/"))


def content(place: Place) -> bytes:
    with place.open() as stream:
        return bytes(stream.read())


def line(text: bytes) -> Result:
    return Result(text, failed=False, completion_tokens=1)


@contextmanager
def opened(output: Place, *, overwrite: bool = False) -> Iterator[Ledger]:
    with open_ledger(output, "a", resume=False, overwrite=overwrite) as ledger:
        assert ledger is not None
        yield ledger


def done(output: Place) -> bool:
    with open_ledger(output, "a", resume=False, overwrite=False) as ledger:
        return ledger is None


def finished(output: Place) -> None:
    with opened(output) as ledger:
        ledger.append(line(b"one\n"), 10)
        ledger.finish()


def killed_before_the_name(output: Place) -> None:
    """As `finished`, but for the last thing that it does."""
    with opened(output) as ledger:
        ledger.append(line(b"one\n"), 10)
        ledger.progress = msgspec.structs.replace(ledger.progress, complete=True)
        ledger.save()


def test_what_was_written_and_not_saved_does_not_count(output: Place) -> None:
    with opened(output) as ledger:
        ledger.append(line(b"one\n"), 10)
        ledger.save()
        ledger.append(line(b"two\n"), 20)
    assert output.size() is None
    with opened(output) as ledger:
        assert (ledger.progress.rows, ledger.progress.offset) == (1, 10)
        ledger.append(line(b"2\n"), 20)
        ledger.save()
        ledger.append(line(b"3\n"), 30)
        ledger.finish()
    assert content(output) == b"one\n2\n3\n"


def test_a_second_start_of_a_finished_job_has_nothing_to_do(output: Place) -> None:
    finished(output)
    assert done(output)
    assert around(output) == ["out", "out.progress"]


def test_a_finished_output_can_be_replaced(output: Place) -> None:
    finished(output)
    with opened(output, overwrite=True) as ledger:
        assert content(output) == b"one\n"
        ledger.append(line(b"ONE\n"), 10)
        ledger.finish()
    assert content(output) == b"ONE\n"
    assert around(output) == ["out", "out.progress"]


def test_an_output_changed_since_is_not_taken_for_the_jobs_own(output: Place) -> None:
    finished(output)
    output.system.pipe_file(output.path, b"ONE\n")
    with pytest.raises(OperatorError, match="is not what this job wrote"):
        done(output)
    assert content(output) == b"ONE\n"


def test_a_kill_between_the_last_checkpoint_and_the_name_costs_nothing(output: Place) -> None:
    killed_before_the_name(output)
    assert output.size() is None
    assert done(output)
    assert content(output) == b"one\n"
    assert around(output) == ["out", "out.progress"]
    progress = read_progress(output)
    assert progress is not None
    assert progress.complete


def test_two_commands_do_not_write_one_output(output: Place) -> None:
    """Here the second is refused; elsewhere the first stops at its next checkpoint."""
    with opened(output) as first:
        first.append(line(b"one\n"), 10)
        with pytest.raises(OperatorError, match="another command is writing"), opened(output):
            first.save()


def test_an_output_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    nowhere = locate(str(tmp_path / "nowhere" / "out"))
    with pytest.raises(OperatorError, match=r"cannot write .*No such file or directory"), opened(nowhere):
        pass


def test_an_address_that_can_only_be_read_is_a_sentence() -> None:
    with open_bucket({}) as bucket:
        place = locate(f"http://127.0.0.1:{bucket.port}/bucket/out")
        with pytest.raises(OperatorError, match="cannot write http://"), opened(place):
            pass


def test_a_checkpoint_that_is_none_is_a_sentence(output: Place) -> None:
    output.system.pipe_file(output.beside("progress").path, b"{")
    with pytest.raises(OperatorError, match="is not a checkpoint"):
        done(output)


@pytest.fixture
def elsewhere() -> Place:
    return locate(f"memory://{uuid.uuid4().hex}/out")


def test_parts_beside_an_output_that_has_its_name_are_removed(elsewhere: Place) -> None:
    killed_before_the_name(elsewhere)
    elsewhere.system.pipe_file(elsewhere.path, b"one\n")
    assert done(elsewhere)
    assert around(elsewhere) == ["out", "out.progress"]


def test_parts_that_are_not_what_was_written_never_get_the_name(elsewhere: Place) -> None:
    killed_before_the_name(elsewhere)
    elsewhere.system.pipe_file(f"{elsewhere.path}.partial/{0:020}", b"ONE\n")
    with pytest.raises(OperatorError, match="is not what was written there; --resume"):
        done(elsewhere)
    assert elsewhere.size() is None


def test_a_missing_part_is_told_at_the_start(elsewhere: Place) -> None:
    with opened(elsewhere) as ledger:
        for number in range(3):
            ledger.append(line(b"x\n"), number)
            ledger.save()
    elsewhere.system.rm_file(f"{elsewhere.path}.partial/{2:020}")
    with pytest.raises(OperatorError, match="shorter than its checkpoint"):
        done(elsewhere)


def test_an_address_is_told_without_its_secrets() -> None:
    place = locate("s3://key:secret@bucket/folder/out.jsonl?region=here")
    assert str(place.beside("partial")) == "s3://bucket/folder/out.jsonl.partial"


def test_two_threads_that_save_at_once_write_once(elsewhere: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a job is ended while a thread of its saves."""
    entered, go_on, parts = threading.Event(), threading.Event(), list[str]()
    write = elsewhere.system.pipe_file

    def slowly(path: str, content: bytes) -> None:
        parts.append(path)
        entered.set()
        go_on.wait()
        write(path, content)

    with opened(elsewhere) as ledger:
        monkeypatch.setattr(elsewhere.system, "pipe_file", slowly)
        ledger.append(line(b"one\n"), 10)
        threads = [threading.Thread(target=ledger.save) for _ in range(2)]
        threads[0].start()
        entered.wait()
        threads[1].start()
        go_on.set()
        for thread in threads:
            thread.join()
        ledger.finish()
    assert len(parts) == 1
    assert content(elsewhere) == b"one\n"


def test_a_store_that_refuses_is_a_sentence_and_costs_what_was_not_saved() -> None:
    with open_bucket({}) as bucket:
        output = locate(bucket.address("folder/out"))
        with opened(output) as ledger:
            ledger.append(line(b"one\n"), 10)
            ledger.save()
            ledger.append(line(b"two\n"), 20)
            bucket.refuses = True
            with pytest.raises(OperatorError, match="cannot write s3://bucket/folder/out: ") as failure:
                ledger.save()
            assert "secret" not in str(failure.value)
        bucket.refuses = False
        with opened(output) as ledger:
            assert (ledger.progress.rows, ledger.progress.offset) == (1, 10)
            ledger.append(line(b"two\n"), 20)
            ledger.finish()
        assert content(output) == b"one\ntwo\n"

"""What counts after a kill, and what is never touched unasked."""

from pathlib import Path

import pytest

from serving.batch.ledger import Found, Progress, decide, look, open_ledger
from serving.batch.rows import Result
from serving.errors import OperatorError

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
        (found(8, None, WHOLE), "overwrite", "begin"),
        (found(9, None, WHOLE), "overwrite", "begin"),
        (found(5, None, None), "overwrite", "begin"),
        (found(None, 8, Progress(job="b", rows=2, bytes=8)), "resume", "go on"),
        (found(None, 8, Progress(job="b", rows=2, bytes=8)), "overwrite", "begin"),
        (found(None, 7, HALF), "overwrite", "begin"),
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


def line(text: bytes) -> Result:
    return Result(text, failed=False, completion_tokens=1)


def test_what_was_written_and_not_saved_does_not_count(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with open_ledger(output, "a", resume=False, overwrite=False) as ledger:
        assert ledger is not None
        ledger.append(line(b"one\n"), 10)
        ledger.save()
        ledger.append(line(b"two\n"), 20)
    assert (tmp_path / "out.jsonl.partial").read_bytes() == b"one\ntwo\n"
    assert not output.exists()
    with open_ledger(output, "a", resume=False, overwrite=False) as ledger:
        assert ledger is not None
        assert (ledger.progress.rows, ledger.progress.offset) == (1, 10)
        ledger.append(line(b"2\n"), 20)
        ledger.finish()
    assert output.read_bytes() == b"one\n2\n"


def finished(output: Path) -> None:
    with open_ledger(output, "a", resume=False, overwrite=False) as ledger:
        assert ledger is not None
        ledger.append(line(b"one\n"), 10)
        ledger.finish()


def test_a_second_start_of_a_finished_job_has_nothing_to_do(tmp_path: Path) -> None:
    finished(tmp_path / "out")
    with open_ledger(tmp_path / "out", "a", resume=False, overwrite=False) as ledger:
        assert ledger is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.progress"]


def test_an_output_changed_since_is_not_taken_for_the_jobs_own(tmp_path: Path) -> None:
    finished(tmp_path / "out")
    (tmp_path / "out").write_bytes(b"ONE\n")
    with (
        pytest.raises(OperatorError, match="is not what this job wrote"),
        open_ledger(tmp_path / "out", "a", resume=False, overwrite=False),
    ):
        pass


def test_a_kill_between_the_last_checkpoint_and_the_rename_costs_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out"
    finished(output)
    output.rename(tmp_path / "out.partial")
    with open_ledger(output, "a", resume=False, overwrite=False) as ledger:
        assert ledger is None
    assert output.read_bytes() == b"one\n"
    progress = look(output).progress
    assert progress is not None
    assert progress.complete


def test_two_commands_do_not_write_one_output(tmp_path: Path) -> None:
    with (
        open_ledger(tmp_path / "out", "a", resume=False, overwrite=False),
        pytest.raises(OperatorError, match="another command is writing"),
        open_ledger(tmp_path / "out", "a", resume=False, overwrite=False),
    ):
        pass


def test_an_output_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(OperatorError, match=r"cannot write .*No such file or directory"),
        open_ledger(tmp_path / "nowhere" / "out", "a", resume=False, overwrite=False),
    ):
        pass


def test_a_checkpoint_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "out.progress").write_text("{")
    with pytest.raises(OperatorError, match="is not a checkpoint"):
        look(tmp_path / "out")

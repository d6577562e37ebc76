"""An output in a folder where others can write: links they plant are not followed, and one command has the lock."""

import fcntl
import os
import threading
from pathlib import Path

import pytest

from serving.batch.location import locate
from serving.batch.output.local import Disk
from serving.batch.output.writer import open_ledger
from serving.batch.rows import Result
from serving.errors import OperatorError


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of this user's somewhere else."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    file = folder / "precious"
    file.write_text("precious")
    return file


def run(output: Path) -> None:
    with open_ledger(locate(str(output)), "a", resume=False, overwrite=False) as ledger:
        assert ledger is not None
        ledger.append(Result(b"one\n", failed=False), 10)
        ledger.finish()


@pytest.mark.parametrize("ending", ["lock", "partial"])
def test_a_link_in_the_place_of_a_file_is_refused_and_not_followed(tmp_path: Path, victim: Path, ending: str) -> None:
    (tmp_path / f"out.{ending}").symlink_to(victim)
    (tmp_path / "out.progress").write_text('{"job":"a","rows":1,"offset":3,"bytes":3}')
    with pytest.raises(OperatorError, match=rf"cannot write .*out\.{ending}: it is a link"):
        run(tmp_path / "out")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("ending", ["progress", "progress.new"])
def test_a_link_in_the_place_of_what_is_written_whole_is_replaced(tmp_path: Path, victim: Path, ending: str) -> None:
    (tmp_path / f"out.{ending}").symlink_to(victim)
    if ending == "progress":
        victim.write_text('{"job":"a"}')
    before = victim.read_text()
    run(tmp_path / "out")
    assert victim.read_text() == before
    assert not (tmp_path / "out.progress").is_symlink()


def test_a_link_in_the_place_of_the_output_is_replaced(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "out").symlink_to(victim)
    with open_ledger(locate(str(tmp_path / "out")), "a", resume=False, overwrite=True) as ledger:
        assert ledger is not None
        ledger.append(Result(b"one\n", failed=False), 10)
        ledger.finish()
    assert victim.read_text() == "precious"
    assert (tmp_path / "out").read_text() == "one\n"


def test_a_lock_that_lies_there_is_not_emptied(tmp_path: Path, victim: Path) -> None:
    os.link(victim, tmp_path / "out.lock")
    run(tmp_path / "out")
    assert victim.read_text() == "precious"


def test_a_lock_that_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.lock")
    with pytest.raises(OperatorError, match=r"out\.lock: it is not a file"):
        run(tmp_path / "out")


def test_a_lock_whose_name_was_given_to_another_file_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first holder ends, and removes the file, between this command's opening and locking it."""
    lock, taken = tmp_path / "out.lock", list[int]()
    flock = fcntl.flock

    def late(file: int, operation: int) -> None:
        if not taken:
            lock.unlink()  # by the first holder
            taken.append(os.open(lock, os.O_RDWR | os.O_CREAT))  # by a third command, which locks it
            flock(taken[0], fcntl.LOCK_EX)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(OperatorError, match="another command is writing"):
        run(tmp_path / "out")
    os.close(taken[0])
    run(tmp_path / "out")


def test_of_many_that_want_the_lock_again_and_again_one_has_it_at_a_time(tmp_path: Path) -> None:
    place, holders, most = locate(str(tmp_path / "out")), set[int](), list[int]()

    def want() -> None:
        for _ in range(200):
            try:
                with Disk(place).locked():
                    holders.add(threading.get_ident())
                    most.append(len(holders))
                    holders.remove(threading.get_ident())
            except OperatorError:
                continue

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most
    assert max(most) == 1


def test_lines_that_another_has_put_in_the_place_of_ours_never_get_the_name(tmp_path: Path) -> None:
    with open_ledger(locate(str(tmp_path / "out")), "a", resume=False, overwrite=False) as ledger:
        assert ledger is not None
        ledger.append(Result(b"one\n", failed=False), 10)
        (tmp_path / "out.partial").unlink(missing_ok=True)
        (tmp_path / "out.partial").write_bytes(b"two\n")
        with pytest.raises(OperatorError, match="is not what was written there"):
            ledger.finish()
    assert not (tmp_path / "out").exists()

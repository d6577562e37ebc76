"""The guardian of a session that is a folder, with processes that have a file open in it."""

import fcntl
import os
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from serving.runtime.ray_cluster.reaper import SHARED_MEMORY, open_files
from tests.e2e.server import eventually

SCRIPT = """
import os, sys
from pathlib import Path
from serving.runtime.ray_cluster.reaper import Session, guard
session, leftover = map(Path, sys.argv[1:])
spared = frozenset({os.getpid(), os.getppid()})
guard(Session(session, Path(sys.prefix) / "lib", spared), [leftover], patience_s=0.0)
"""
HANGS = "import signal; print('up', flush=True); signal.pause()"


class Folder:
    """A session's folder, a temporary folder besides, and their guardian, which this process stands for."""

    def __init__(self, parent: Path) -> None:
        self.session, self.leftover = parent / "session", parent / "leftover"
        for folder in (self.session / "logs", self.session / "sockets", self.leftover):
            folder.mkdir(parents=True)
        self.log = self.session / "logs" / "log"
        self.log.touch()
        (self.session / "sockets" / "raylet").touch()
        command = [sys.executable, "-c", SCRIPT, str(self.session), str(self.leftover)]
        self.guardian = subprocess.Popen(command, stdin=subprocess.PIPE)
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *command: str, opened: Path) -> psutil.Process:
        """A process that says a word and then has `opened` open until it is ended."""
        with opened.open() as file:
            process = subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "up"
        self.started.append(process)
        return psutil.Process(process.pid)

    def write(self) -> None:
        """Write one byte to the guardian, and return when it has read it."""
        assert self.guardian.stdin is not None
        line = self.guardian.stdin.fileno()
        os.write(line, b"x")
        eventually(lambda: not any(fcntl.ioctl(line, termios.FIONREAD, bytes(4))))

    def let_go(self) -> None:
        """What the end of the command does."""
        assert self.guardian.stdin is not None
        self.guardian.stdin.close()
        assert self.guardian.wait(60) == 0

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()
        self.guardian.kill()
        self.guardian.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path)
    yield folder
    folder.close()


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_processes_of_the_session_end_and_their_sockets_and_folders_go(folder: Folder) -> None:
    process = folder.start(sys.executable, "-c", HANGS, opened=folder.log)
    folder.let_go()
    assert not lives(process)
    assert not (folder.session / "sockets").exists()
    assert not folder.leftover.exists()
    assert folder.log.exists()


def test_a_link_that_was_planted_in_the_sessions_place_is_not_followed(folder: Folder, tmp_path: Path) -> None:
    precious = tmp_path / "precious" / "sockets"
    precious.mkdir(parents=True)
    eventually(lambda: folder.session in open_files(folder.guardian.pid))
    folder.session.rename(tmp_path / "moved")
    folder.session.symlink_to(precious.parent)
    folder.let_go()
    assert precious.is_dir()
    assert not (tmp_path / "moved" / "sockets").exists()


def test_nobody_else_is_touched(folder: Folder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "session-of-another"
    elsewhere.touch()
    spared = [
        folder.start("/bin/sh", "-c", "echo up; exec sleep 600", opened=folder.log),
        folder.start(sys.executable, "-c", HANGS, opened=elsewhere),
    ]
    with folder.log.open():
        folder.let_go()
    assert all(map(lives, spared))


def test_shared_memory_that_the_session_had_open_goes_with_it(folder: Folder) -> None:
    segment = SHARED_MEMORY / f"gangway-test-{folder.guardian.pid}"
    hangs = f"kept = open({str(segment)!r}, 'w'); {HANGS}"
    try:
        folder.start(sys.executable, "-c", hangs, opened=folder.log)
        folder.let_go()
        assert not segment.exists()
    finally:
        segment.unlink(missing_ok=True)


def test_while_the_command_lives_nothing_happens(folder: Folder) -> None:
    process = folder.start(sys.executable, "-c", HANGS, opened=folder.log)
    folder.write()
    folder.write()  # it is read only by a guardian that waits again after the first
    assert folder.guardian.poll() is None
    assert lives(process)
    assert (folder.session / "sockets" / "raylet").exists()
    assert folder.leftover.exists()

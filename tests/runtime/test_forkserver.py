"""Processes forked by a nursery are what they would have been without one; this process stands for the raylet."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.runtime.forkserver import shim
from serving.runtime.forkserver.server import hold
from tests.e2e.server import eventually
from tests.second_user import as_nobody, common_folder, needs_root

RETIRE = "from serving.runtime.forkserver.server import retire; retire()"


class Worker:
    """A Python script, started as Ray starts the worker of a rank."""

    def __init__(self, folder: Path, code: str, *arguments: str, **environment: str) -> None:
        script = folder / "script.py"
        script.write_text(code)
        command = [sys.executable, "-I", "-S", shim.__file__, str(script), *arguments]
        self.shim = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=folder, env=dict(os.environ) | environment
        )

    def line(self) -> str:
        assert self.shim.stdout is not None
        return self.shim.stdout.readline().strip()

    def end(self) -> int:
        assert self.shim.stdout is not None
        with self.shim.stdout:
            return self.shim.wait(60)


def nurseries() -> list[psutil.Process]:
    """Those that belong to this process, and their forks, which go by the same name; the oldest first."""
    return [
        process
        for process in psutil.process_iter()
        if process.is_running() and _command(process)[1:3] == ["-m", "serving.runtime.forkserver.server"]
        if _command(process)[4] == str(os.getpid())
    ]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


@pytest.fixture(scope="module")
def nursery() -> Iterator[socket.socket]:
    """One for this file, held so that it stays."""
    with hold(os.getpid()) as line:
        yield line
    for process in nurseries():
        process.kill()
        process.wait(60)


DESCRIBE = """
import json, os, sys
print(json.dumps({
    "arguments": sys.argv[1:], "folder": os.getcwd(), "word": os.environ.get("WORD"), "name": __name__,
    "parent": os.getppid(), "imported": "torch" in sys.modules, "address": os.environ.get("GANGWAY_NURSERY"),
    "threads": len(os.listdir("/proc/self/task")),
}), flush=True)
"""


def described(folder: Path) -> Any:
    worker = Worker(folder, DESCRIBE, "a", "b c", WORD="w")
    facts = json.loads(worker.line())
    assert worker.end() == 0
    return facts


@pytest.mark.quick
@pytest.mark.usefixtures("nursery")
def test_a_fork_has_its_starters_arguments_environment_and_folder_and_all_imports(tmp_path: Path) -> None:
    facts = described(tmp_path)
    assert (facts["arguments"], facts["word"], facts["name"]) == (["a", "b c"], "w", "__main__")
    assert facts["folder"] == str(tmp_path)
    assert facts["imported"]
    assert facts["parent"] == nurseries()[0].pid
    assert facts["address"] == str(shim.address(os.getpid()))


@pytest.mark.usefixtures("nursery")
def test_a_starter_ends_as_its_fork_does(tmp_path: Path) -> None:
    assert Worker(tmp_path, "import sys; sys.exit(7)").end() == 7
    assert Worker(tmp_path, "import os; os.kill(os.getpid(), 9)").end() == -signal.SIGKILL
    assert Worker(tmp_path, "raise SystemExit").end() == 0


@pytest.mark.usefixtures("nursery")
def test_a_fork_ends_with_its_starter(tmp_path: Path) -> None:
    worker = Worker(tmp_path, "import os, signal; print(os.getpid(), flush=True); signal.pause()")
    fork = psutil.Process(int(worker.line()))
    assert fork.is_running()
    worker.shim.kill()
    worker.end()
    eventually(lambda: not fork.is_running(), 60)


@pytest.mark.usefixtures("nursery")
def test_forks_run_side_by_side_and_share_nothing(tmp_path: Path) -> None:
    draw = """
import random, threading
from ray._raylet import ObjectRef
drawn = [str(random.random()), ObjectRef.from_random().hex()]
other = threading.Thread(target=lambda: drawn.append(ObjectRef.from_random().hex()))
other.start()
other.join()
print(*drawn, flush=True)
"""
    workers = [Worker(tmp_path, f"{draw}\nimport signal; signal.pause()") for _ in range(3)]
    drawn = [worker.line().split() for worker in workers]
    assert len({value for values in drawn for value in values}) == 9
    for worker in workers:
        worker.shim.kill()
        worker.end()


@needs_root
@pytest.mark.usefixtures("nursery")
def test_another_user_gets_no_fork() -> None:
    """Nor can it enter the folder; here it is handed the socket."""
    with common_folder() as folder:
        os.link(shim.address(os.getpid()), folder / "line")
        (folder / "line").chmod(0o666)

        def ask() -> bool:
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(str(folder / "line"))
                with suppress(BrokenPipeError, ConnectionResetError):  # hung up before all was said
                    shim.send(line, verb="fork", arguments=["-c", ""], environment={}, folder="/")
                    return not line.recv(1)
                return True

        assert as_nobody(ask)
        (folder / "line").chmod(0o600)
    assert len(nurseries()) == 1
    assert not as_nobody(lambda: shim.address(os.getpid()).exists())


def test_a_fork_outlives_a_nursery_that_is_killed_and_its_starter_waits_for_it(tmp_path: Path) -> None:
    with hold(os.getpid()):
        worker = Worker(tmp_path, "import os, signal; print(os.getpid(), flush=True); signal.pause()")
        fork = psutil.Process(int(worker.line()))
        nurseries()[0].kill()
        assert described(tmp_path)["imported"]  # by another nursery
        assert fork.is_running()
        assert worker.shim.poll() is None
    fork.kill()
    assert worker.end() == 1
    for process in nurseries():
        process.kill()
    eventually(lambda: not nurseries(), 60)


def test_a_nursery_that_is_told_to_retire_ends_with_its_last_fork(nursery: socket.socket, tmp_path: Path) -> None:
    nursery.close()
    worker = Worker(tmp_path, f"{RETIRE}; print('told', flush=True); import signal; signal.pause()")
    assert worker.line() == "told"
    assert nurseries()
    worker.shim.kill()
    worker.end()
    eventually(lambda: not nurseries(), 60)
    assert not shim.address(os.getpid()).exists()


def test_a_worker_starts_without_a_nursery_when_none_can_be_started(tmp_path: Path) -> None:
    in_the_way = shim.address(os.getpid())
    in_the_way.mkdir()
    try:
        assert not described(tmp_path)["imported"]
    finally:
        in_the_way.rmdir()


@needs_root
def test_what_another_user_listens_with_is_handed_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_ID", "planted")
    where = shim.address(os.getpid())
    with common_folder() as folder, socket.socket(socket.AF_UNIX) as listener:

        def listen() -> bool:
            listener.bind(str(folder / "line"))
            listener.listen()
            return True

        assert as_nobody(listen)
        os.link(folder / "line", where)
        try:
            with pytest.raises(PermissionError, match="user 65534 is at the other end of a nursery's socket of user 0"):
                shim.connect(os.getpid())
            assert not described(tmp_path)["imported"]
        finally:
            where.unlink()

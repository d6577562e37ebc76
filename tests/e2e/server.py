"""A real `gangway serve` process and all that it starts: its descendants, and whatever carries the mark they inherit.

Descendants that are orphaned are known by the mark, and those that overwrite their environment (Ray names its processes
there) by having been seen before.
"""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.models import DEMO

MODEL = DEMO
CONFIG = Path("configs/local.yaml").absolute()
MARK = "GANGWAY_TEST_RUN"
SAFETY_S = 300.0
"""The longest wait for anything: a machine may be ten times as slow as it is at its best, and decides no test."""


class Process:
    """A command with a mark of its own."""

    def __init__(self, *command: str | Path, **environment: str) -> None:
        self.mark = uuid.uuid4().hex
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=inherited | environment | {MARK: self.mark, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        self._seen: set[psutil.Process] = set()
        self.lines: list[str] = []
        self._news: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self._news.put(line.rstrip("\n"))
        self._news.put(None)

    def wait_for_line(self, *parts: str, timeout_s: float = SAFETY_S) -> str:
        """The next line that has all `parts`; fails when the process ends or time runs out before."""
        deadline = time.monotonic() + timeout_s
        while (line := self._news.get(timeout=max(0.0, deadline - time.monotonic()))) is not None:
            self.lines.append(line)
            if all(part in line for part in parts):
                return line
        raise AssertionError("the process has ended:\n" + "\n".join(self.lines))

    def said(self) -> list[str]:
        """All lines so far."""
        while not self._news.empty():
            if (line := self._news.get()) is None:
                self._news.put(None)
                break
            self.lines.append(line)
        return list(self.lines)

    def signal(self, number: signal.Signals) -> None:
        self.processes()
        self.process.send_signal(number)

    def wait(self, timeout_s: float = SAFETY_S) -> int:
        """The exit code; fails with what the process has said when it does not end."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            said = "\n".join([*self.lines, *(line for line in self._news.queue if line)])
            raise AssertionError(f"it has not ended after {timeout_s:g} s:\n{said}") from error

    def processes(self) -> list[psutil.Process]:
        """Every living process that this one has started, itself included."""
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            self._seen |= {top, *top.children(recursive=True)}
        self._seen |= {process for process in psutil.process_iter() if self._marked(process)}
        self._seen = {process for process in self._seen if _lives(process)}
        return list(self._seen)

    def titles(self) -> list[str]:
        """The command lines of those processes; Ray's are named for the actor they hold."""
        return [title for process in self.processes() if (title := _title(process)) is not None]

    def named(self, part: str) -> list[psutil.Process]:
        """Those of the processes whose command lines have that part."""
        return [process for process in self.processes() if part in (_title(process) or "")]

    def _marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def wait_until_gone(self, timeout_s: float = SAFETY_S) -> None:
        """Until no marked process is left."""
        eventually(lambda: not self.processes(), timeout_s)

    def kill(self) -> None:
        """End everything at once, whatever its state."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):  # ended since
                process.kill()
        self.process.wait(SAFETY_S)
        self._reader.join(SAFETY_S)


def _title(process: psutil.Process) -> str | None:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.NoSuchProcess:  # ended since
        return None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Server(Process):
    """`gangway serve` on a free port; ready once `wait_until_ready` returns."""

    def __init__(self, *arguments: str, model: Path = MODEL, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        settings = [f"http.port={self.port}", f"model.path={model}"]
        overrides = [part for setting in settings for part in ("--set", setting)]
        super().__init__(*gangway("serve", CONFIG, *overrides, *arguments), **environment)

    def wait_until_ready(self) -> None:
        assert self.url in self.wait_for_line("ready at")

    def status(self) -> Any:
        return httpx.get(f"{self.url}/v1/status", timeout=10).json()

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


def gangway(*arguments: str | Path) -> list[str | Path]:
    """The command line of `gangway`, in this interpreter."""
    return [sys.executable, "-m", "serving.cli", *arguments]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(holds: Callable[[], bool], timeout_s: float = SAFETY_S) -> None:
    """Return as soon as `holds`; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        pause.wait(0.1)

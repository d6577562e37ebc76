"""Faults that a drill does to a running group: signals to its ranks, or commands that do and undo anything else.

Signals reach this machine only, and only processes that are Ray Train workers: a pid that some other machine reported
may be anybody's here.
"""

import asyncio
import re
import shlex
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol

import psutil

from serving.errors import ConfigError, OperatorError

KNOWN = "kill-rankN, stop-rankN, kill-all, poison"
_NAME = re.compile(r"(kill|stop)-(?:rank(\d+)|all)")
_TITLE = re.compile(r"ray::\S*TrainWorker")
"""How Ray names the process that holds a rank."""


class WrongTarget(ConfigError):
    """The fault cannot be done to this group from here."""


class Fault(Protocol):
    """Something that is done to a group once a round: `aim`, `strike`, `heal`."""

    name: str
    restarts: bool
    """Is a new generation certain to follow?"""

    def aim(self, status: dict[str, Any]) -> None:
        """Find what to strike in an answer of `/v1/status`. Raises `WrongTarget`."""

    async def strike(self) -> None:
        """Do it. Raises `OperatorError` when it cannot be done."""

    async def heal(self, *, restarted: bool) -> None:
        """Undo what is left of it; `restarted`: a new generation was formed since."""


def make_fault(name: str | None, command: str | None, heal: str | None, poison: Fault | None = None) -> Fault:
    """Either a fault by its name, or a command with what undoes it; `poison` is what has that name.

    Raises `ConfigError`.
    """
    if (name is None) == (command is None):
        raise ConfigError(f"expected either --fault ({KNOWN}) or --command")
    if command is not None:
        return CommandFault(command, heal)
    if heal is not None:
        raise ConfigError("--heal undoes a --command; a fault by name needs none")
    return poison if name == "poison" and poison is not None else _by_name(name or "")


def _by_name(name: str) -> "SignalFault":
    match = _NAME.fullmatch(name)
    if match is None or name == "stop-all":
        raise ConfigError(f"--fault {name}: expected one of {KNOWN}")
    return SignalFault(name, None if match[2] is None else int(match[2]), stop=match[1] == "stop")


class SignalFault:
    """SIGKILL or SIGSTOP to one rank or to all."""

    def __init__(self, name: str, rank: int | None, *, stop: bool) -> None:
        """`rank`: None for all."""
        self.name = name
        self.restarts = not stop
        self._rank = rank
        self._stop = stop
        self._targets: list[psutil.Process] = []

    def aim(self, status: dict[str, Any]) -> None:
        ranks = {entry["rank"]: entry for entry in status["ranks"]}
        if not ranks or (self._rank is not None and self._rank not in ranks):
            known = ", ".join(map(str, ranks)) or "none"
            raise WrongTarget(f"{self.name}: the group has no such rank (it has {known})")
        chosen = ranks.values() if self._rank is None else [ranks[self._rank]]
        self._targets = [_worker(entry) for entry in chosen]

    async def strike(self) -> None:
        self._send(signal.SIGSTOP if self._stop else signal.SIGKILL)

    async def heal(self, *, restarted: bool) -> None:
        """A stopped rank that a new generation has replaced is of no use to anybody; any other may go on."""
        if self._stop:
            self._send(signal.SIGKILL if restarted else signal.SIGCONT)
        self._targets = []

    def _send(self, number: signal.Signals) -> None:
        for process in self._targets:
            with suppress(psutil.NoSuchProcess):  # ended by itself, or by its supervisor
                process.send_signal(number)


def _worker(entry: dict[str, Any]) -> psutil.Process:
    rank, pid, ip = entry["rank"], entry["pid"], entry["ip"]
    try:
        process = psutil.Process(pid)
        title = " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied) as error:
        raise WrongTarget(f"rank {rank} (pid {pid} at {ip}): this machine has no such process") from error
    if not _TITLE.match(title):
        raise WrongTarget(f"rank {rank} (pid {pid} at {ip}): that pid is no Ray Train worker on this machine")
    return process


class CommandFault:
    """A command, and one that undoes it; split as a shell splits words, and run without a shell."""

    restarts = False

    def __init__(self, command: str, heal: str | None) -> None:
        self.name = command
        self._command = _words(command)
        self._heal = _words(heal) if heal is not None else None

    def aim(self, status: dict[str, Any]) -> None:
        """The command knows where it goes."""

    async def strike(self) -> None:
        await _run(self._command)

    async def heal(self, *, restarted: bool) -> None:  # noqa: ARG002  what a command undoes does not depend on it
        if self._heal is not None:
            await _run(self._heal)


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{command}: {error}") from error
    if not words:
        raise ConfigError("a command must have at least one word")
    return words


async def _run(words: Iterable[str]) -> None:
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*words, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    except OSError as error:
        raise OperatorError(f"{shlex.join(words)}: {error}") from error
    said, _ = await process.communicate()
    if process.returncode:
        text = said.decode(errors="replace").strip()[-300:]
        raise OperatorError(f"{shlex.join(words)} exited with {process.returncode}: {text}")

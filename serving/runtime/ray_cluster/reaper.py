"""Sees to it that an embedded cluster leaves nothing behind: a script of the standard library only, beside the command.

The command holds the other end of its standard input, which ends with the command, however that ends. The processes of
the Ray session then get some time to end by themselves, and what has not is killed: Ray's agents outlive a killed
command by more than a minute. They have overwritten their environment and their titles, so the session's processes are
known by the files that they have open in its folder, and by running this interpreter or a program installed with Ray:
a user who reads a log file with another program is left alone. A Python program that has joined the session itself, and
has lost its cluster, is not.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE_S = 10.0
"""How long processes may take to end by themselves. An orderly end takes them less than a second."""
KILL_S = 20.0
"""How long killed processes may take to be gone; longer means that the kernel holds them."""
POLL_S = 0.25
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  memory, not a disk


@dataclass
class Session:
    """The processes of one Ray session on this machine, and what they leave."""

    folder: Path
    packages: Path
    """Where Ray is installed, and its programs with it."""
    spared: frozenset[int]
    """Processes that do not belong to it whatever they have open: the command that has started it."""
    segments: set[Path] = field(default_factory=set)
    """Shared memory that a process of the session was seen to have open."""
    opened: int = field(init=False)
    """The folder itself, whatever comes to have its name: Ray opens it to everybody."""

    def __post_init__(self) -> None:
        self.opened = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def processes(self) -> list[int]:
        """Those of this user that live."""
        return [pid for pid in _own_processes() if pid not in self.spared and self._has(pid)]

    def kill(self) -> None:
        """End every process, and those that they start meanwhile."""
        deadline = time.monotonic() + KILL_S
        while (living := self.processes()) and time.monotonic() < deadline:
            for pid in living:
                with suppress(ProcessLookupError):  # ended since
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S)

    def clear(self) -> None:
        """Remove the sockets and the shared memory; log files stay."""
        shutil.rmtree("sockets", ignore_errors=True, dir_fd=self.opened)
        for segment in self.segments:
            segment.unlink(missing_ok=True)

    def _has(self, pid: int) -> bool:
        opened = set(open_files(pid))
        if not (any(file.is_relative_to(self.folder) for file in opened) and self._runs_ours(pid)):
            return False
        self.segments |= {file for file in opened if file.parent == SHARED_MEMORY and file.exists()}
        return True

    def _runs_ours(self, pid: int) -> bool:
        try:
            program = Path(f"/proc/{pid}/exe").readlink()
        except OSError:  # ended since
            return False
        return program == Path(sys.executable).resolve() or program.is_relative_to(self.packages)


def _own_processes() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with suppress(FileNotFoundError):  # ended since
            if entry.name.isdecimal() and entry.stat().st_uid == os.getuid():
                yield int(entry.name)


def open_files(pid: int) -> Iterator[Path]:
    """What a process has open, as far as this user may know."""
    with suppress(OSError):  # ended since, or not to be looked at
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since
                yield descriptor.readlink()


def guard(session: Session, leftovers: list[Path], patience_s: float = PATIENCE_S) -> None:
    """Wait for the end of standard input; then see the session's processes end, and remove what they leave."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    deadline = time.monotonic() + patience_s
    while session.processes() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    session.kill()
    session.clear()
    for folder in leftovers:
        shutil.rmtree(folder, ignore_errors=True)


def main(session: str, packages: str, *leftovers: str) -> None:
    """`session`: Ray's folder for it; `packages`: where Ray is installed; `leftovers`: folders to remove in the end."""
    spared = frozenset({os.getpid(), os.getppid()})
    guard(Session(Path(session), Path(packages), spared), [Path(folder) for folder in leftovers])


if __name__ == "__main__":
    main(*sys.argv[1:])

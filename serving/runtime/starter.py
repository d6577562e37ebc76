"""Starts a Ray worker as a fork of the node's nursery; a script of the standard library only, run for every rank.

It hands its command line, environment, folder and standard streams to the nursery (see `nursery`), waits for the end of
the process forked for it, and ends alike; when it is ended itself, the nursery ends the fork. The first starter on a
node starts the nursery. Wherever there is none to be had, the starter becomes an ordinary worker.
"""

import array
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

LENGTH_BYTES = 4
STATUS_BYTES = 4
STREAMS = (0, 1, 2)


def main(arguments: list[str]) -> None:
    """Run `python ARGUMENTS` in a fork of the nursery, or in this process."""
    status = None
    with suppress(OSError, subprocess.CalledProcessError):
        status = _run_in_nursery(arguments)
    if status is None:
        os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def address(raylet: int) -> Path:
    """The socket of the nursery that belongs to this raylet, in a folder that only this user can enter."""
    folder = Path(tempfile.gettempdir()) / f"gangway-nursery-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    return folder / str(raylet)


def _run_in_nursery(arguments: list[str]) -> int | None:
    """The wait status of the fork; None when the nursery ended before it had made one. Raises `OSError`."""
    with connect(os.getppid()) as line:
        send(line, verb="fork", arguments=arguments, environment=dict(os.environ), folder=str(Path.cwd()))
        status = line.recv(STATUS_BYTES, socket.MSG_WAITALL)
    return int.from_bytes(status, "little") if len(status) == STATUS_BYTES else None


def send(line: socket.socket, **request: object) -> None:
    """A request, and this process's standard streams with it."""
    payload = json.dumps(request).encode()
    streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", STREAMS))]
    line.sendmsg([len(payload).to_bytes(LENGTH_BYTES, "little")], streams)
    line.sendall(payload)


def connect(raylet: int) -> socket.socket:
    """A line to the nursery, which is started if it is not there. It answers once it has imported everything."""
    where = address(raylet)
    line = socket.socket(socket.AF_UNIX)
    with open(f"{where}.lock", "w") as lock:  # noqa: PTH123
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            line.connect(str(where))
        except OSError:  # never started, or ended
            _start_nursery(where, raylet)
            line.connect(str(where))
    return line


def _start_nursery(where: Path, raylet: int) -> None:
    """It leaves this process at once for a session of its own: Ray ends a worker's children along with the worker."""
    where.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(where))
        listener.listen()
        subprocess.run(
            [sys.executable, "-m", "serving.runtime.nursery", str(listener.fileno()), str(raylet)],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            check=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])

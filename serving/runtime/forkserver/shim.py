"""Starts a Ray worker as a fork of the node's nursery; a script of the standard library only, run for every rank.

It hands its command line, environment, folder and standard streams to the nursery (see `server`), waits for the end of
the process forked for it, and ends alike; when it is ended itself, the nursery ends the fork. The first starter on a
node starts the nursery. Wherever there is none to be had, the starter becomes an ordinary worker.
"""

import array
import fcntl
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

own_folder: Callable[[], Path] = runpy.run_path(str(Path(__file__).parents[2] / "own_folder.py"))["own_folder"]
"""That of `serving.own_folder`, which cannot be imported here."""
LENGTH_BYTES = 4
NUMBER_BYTES = 4
"""Of what the nursery answers: the fork's process id at once, its wait status at its end."""
NURSERY_LOST = 1 << 8
"""The wait status, exit code 1, of a fork whose end nobody could tell."""
STREAMS = (0, 1, 2)
ATTEMPTS = 2
"""The first nursery may be one that is just ending."""


def main(arguments: list[str]) -> None:
    """Run `python ARGUMENTS` in a fork of the nursery, or in this process."""
    for _ in range(ATTEMPTS):
        try:
            status = _run_in_nursery(arguments)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no nursery, this worker starts by itself: {error}", file=sys.stderr)  # noqa: T201  Ray's log of it
        else:
            if status is not None:
                _end_like(status)
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606


def _end_like(status: int) -> NoReturn:
    """End as a process of that wait status did."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def address(raylet: int) -> Path:
    """The socket of the nursery of this raylet and this Ray job, in a folder that only this user can enter.

    A process that has imported Ray for one job cannot fork workers for another: the raylet ends them with the first.
    Raises `OSError`.
    """
    folder = own_folder() / "nursery"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{raylet}-{os.environ.get('RAY_JOB_ID', 'none')}"


def require_own(line: socket.socket) -> None:
    """Raise `PermissionError`, a sentence, when another user is at the other end of a socket of this machine."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if user != os.getuid():
        raise PermissionError(f"user {user} is at the other end of a nursery's socket of user {os.getuid()}: refused")


def _run_in_nursery(arguments: list[str]) -> int | None:
    """The wait status of the fork; None when the nursery ended before it had made one. Raises `OSError`.

    A nursery that ends later leaves its forks alive: then there is still one to wait for, and none to start.
    """
    with connect(os.getppid()) as line:
        send(line, verb="fork", arguments=arguments, environment=dict(os.environ), folder=str(Path.cwd()))
        fork = _number(line)
        if fork is None:
            return None
        status = _number(line)
    if status is None:
        _outwait(fork)
        return NURSERY_LOST
    return status


def _number(line: socket.socket) -> int | None:
    """The nursery's next answer; None when it has ended."""
    try:
        answer = line.recv(NUMBER_BYTES, socket.MSG_WAITALL)
    except ConnectionResetError:
        return None
    return int.from_bytes(answer, "little") if len(answer) == NUMBER_BYTES else None


def _outwait(pid: int) -> None:
    """Wait for the end of a process that is no child of this one."""
    with suppress(ProcessLookupError):  # ended already
        select.select([os.pidfd_open(pid)], [], [])


def send(line: socket.socket, **request: object) -> None:
    """A request, and this process's standard streams with it."""
    payload = json.dumps(request).encode()
    streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", STREAMS))]
    line.sendmsg([len(payload).to_bytes(LENGTH_BYTES, "little")], streams)
    line.sendall(payload)


def connect(raylet: int) -> socket.socket:
    """A line to the nursery, which is started if it is not there. It answers once it has imported everything.

    Raises `OSError`.
    """
    where = address(raylet)
    line = socket.socket(socket.AF_UNIX)
    try:
        with where.with_name("lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                line.connect(str(where))
            except OSError:  # never started, or ended
                _start_nursery(where, raylet)
                line.connect(str(where))
        require_own(line)
    except BaseException:
        line.close()
        raise
    return line


def _start_nursery(where: Path, raylet: int) -> None:
    """It leaves this process at once for a session of its own: Ray ends a worker's children along with the worker."""
    where.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(where))
        listener.listen()
        subprocess.run(
            [sys.executable, "-m", "serving.runtime.forkserver.server", str(listener.fileno()), str(raylet)],
            env=os.environ | {"PYTHONSAFEPATH": "1"},  # nothing is imported from whatever folder this is
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            check=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])

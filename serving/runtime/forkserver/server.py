"""A process that has imported everything a rank needs and forks ranks on request, so that a restart costs no imports.

Importing Ray Train, torch, transformers and DeepSpeed takes some five seconds of a core in every fresh process, which
was most of what a restart took. `through_nursery` has Ray start a rank's worker by `shim`, which asks this process.
It computes nothing itself, so it has no thread that a fork would miss (OpenBLAS and jemalloc renew theirs after a fork)
and no random generator in use whose state its forks would share: Ray would give two ranks' calls the same id.

A nursery belongs to one raylet and one Ray job. It ends with the raylet, or once told to (`retire`) and without
children, or after `LINGER_S` without children and without anybody who holds it (`hold`), as is done on nodes that are
spare. Ranks with GPUs do without: whether the imports leave CUDA untouched has not been tried.
"""

import importlib
import json
import logging
import os
import runpy
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from serving.homes import settle
from serving.runtime.forkserver import shim

ADDRESS = "GANGWAY_NURSERY"
"""In the environment of every fork: where its nursery listens."""
LINGER_S = 30.0
"""A restart of the group takes less, and what has no children for longer is of no more use."""
MODULES = (
    "ray.train.v2._internal.execution.worker_group.worker",
    "transformers.models.auto.modeling_auto",
    "serving.runtime.group.worker",
    "serving.runtime.deployment",
    "serving.engine.engine",
)

logger = logging.getLogger(__name__)


def through_nursery() -> dict[str, Any]:
    """The part of a Ray runtime environment that starts its workers here. Needs one path of Python on all nodes."""
    return {"py_executable": f"{sys.executable} -I -S {shim.__file__}"}


def retire() -> None:
    """In a fork: its nursery is needed no more and ends with its last child. In any other process: nothing."""
    if ADDRESS in os.environ:
        with socket.socket(socket.AF_UNIX) as line, suppress(OSError):  # it has ended already, or is not ours
            line.connect(os.environ[ADDRESS])
            shim.require_own(line)
            shim.send(line, verb="retire")


def hold(raylet: int) -> socket.socket:
    """Start the nursery of this node, if there is none, and keep it until what is returned is closed."""
    line = shim.connect(raylet)
    shim.send(line, verb="hold")
    return line


@dataclass
class Child:
    """A fork and the starter that waits for it."""

    pid: int
    process: int
    """A pidfd: readable once it has ended."""
    line: socket.socket
    """At its end, the starter is no more."""

    def tell(self, number: int) -> None:
        """Its process id or its wait status, to a starter that may have ended."""
        with suppress(OSError):
            self.line.sendall(number.to_bytes(shim.NUMBER_BYTES, "little"))


class Nursery:
    """The loop: take requests, fork, hand back how each fork ended."""

    def __init__(self, listener: socket.socket, raylet: int) -> None:
        self._listener = listener
        self._address = Path(listener.getsockname())
        self._children: list[Child] = []
        self._holders: set[socket.socket] = set()
        self._retired = False
        self._idle_since = time.monotonic()
        self._raylet = os.pidfd_open(raylet)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._take)
        self._selector.register(self._raylet, selectors.EVENT_READ, self._end)

    def run(self) -> None:
        """Until the raylet is gone, or nobody needs this any more. Returns in a fork, too, as `SystemExit`."""
        while self._children or self._holders or not (self._retired or time.monotonic() - self._idle_since > LINGER_S):
            for key, _ in self._selector.select(LINGER_S):
                key.data()
        self._end()

    def _take(self) -> None:
        """One request, of this user."""
        line, _ = self._listener.accept()
        try:
            shim.require_own(line)
        except PermissionError as error:
            logger.warning("%s", error)
            line.close()
            return
        if (received := _receive(line)) is None:
            line.close()
            return
        request, streams = received
        match request["verb"]:
            case "fork":
                self._fork(request, streams, line)
            case "hold":
                self._holders.add(line)
                self._selector.register(line, selectors.EVENT_READ, lambda: self._let_go(line))
            case "retire":
                self._retired = True
                line.close()
        for stream in streams:
            os.close(stream)

    def _let_go(self, line: socket.socket) -> None:
        self._selector.unregister(line)
        self._holders.remove(line)
        self._idle_since = time.monotonic()
        line.close()

    def _fork(self, request: dict[str, Any], streams: list[int], line: socket.socket) -> None:
        pid = os.fork()
        if pid == 0:
            self._forget()
            line.close()
            become(request, streams, self._address)
        child = Child(pid, os.pidfd_open(pid), line)
        self._children.append(child)
        child.tell(pid)
        self._selector.register(child.process, selectors.EVENT_READ, lambda: self._bury(child))
        self._selector.register(line, selectors.EVENT_READ, lambda: self._kill(child))

    def _forget(self) -> None:
        """In a fork: what is the nursery's own."""
        self._selector.close()
        self._listener.close()
        os.close(self._raylet)
        for child in self._children:
            os.close(child.process)
            child.line.close()
        for holder in self._holders:
            holder.close()

    def _kill(self, child: Child) -> None:
        """Its starter was ended, so Ray wants it ended; it may have ended in the same moment."""
        if child not in self._children:
            return
        self._selector.unregister(child.line)
        signal.pidfd_send_signal(child.process, signal.SIGKILL)

    def _bury(self, child: Child) -> None:
        _, status = os.waitpid(child.pid, 0)
        child.tell(status)
        self._selector.unregister(child.process)
        with suppress(KeyError):  # see `_kill`
            self._selector.unregister(child.line)
        os.close(child.process)
        child.line.close()
        self._children.remove(child)
        self._idle_since = time.monotonic()

    def _end(self) -> NoReturn:
        for child in self._children:
            signal.pidfd_send_signal(child.process, signal.SIGKILL)
        self._address.unlink(missing_ok=True)
        os._exit(0)


def become(request: dict[str, Any], streams: list[int], address: Path) -> NoReturn:
    """Turn this fork into the process that its starter would have been."""
    os.setsid()
    for stream, target in zip(streams, shim.STREAMS, strict=True):
        os.dup2(stream, target)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"] | {ADDRESS: str(address)})
    settle()
    os.chdir(request["folder"])
    sys.argv = request["arguments"]
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


def _receive(line: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """A request and the standard streams that came with it; None when the process that asked has gone."""
    head, streams, _, _ = socket.recv_fds(line, shim.LENGTH_BYTES, len(shim.STREAMS))
    length = int.from_bytes(head, "little")
    payload = line.recv(length, socket.MSG_WAITALL) if length else b""
    if payload and len(payload) == length:
        return json.loads(payload), streams
    for stream in streams:
        os.close(stream)
    return None


def main(listener: int, raylet: int) -> None:
    """Leave the process that started this, import everything, then serve what has come meanwhile and what will come.

    Where forks would not be independent it ends instead, and every starter becomes an ordinary worker.
    """
    if os.fork():
        os._exit(0)
    settle()
    with _system_ids():
        for module in MODULES:
            importlib.import_module(module)
    from serving.engine.loading.autotp import import_deepspeed

    import_deepspeed()
    if _random_id() == _random_id():
        raise SystemExit("forks would share the state of Ray's random generator: ranks start without a nursery")
    Nursery(socket.socket(fileno=listener), raylet).run()


@contextmanager
def _system_ids() -> Iterator[None]:
    """Every actor class that is defined draws an id from Ray's generator; in here, from the system's."""
    import ray.actor
    from ray._raylet import ActorClassID

    fresh = SimpleNamespace(from_random=lambda: ActorClassID(os.urandom(ActorClassID.size())))
    ray.actor.ActorClassID = fresh
    try:
        yield
    finally:
        ray.actor.ActorClassID = ActorClassID


def _random_id() -> bytes:
    """The first id that Ray's generator gives in a fork."""
    from ray._raylet import ObjectRef

    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writer, ObjectRef.from_random().binary())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        return answer.read()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

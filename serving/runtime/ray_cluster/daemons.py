"""Ray's daemons of an embedded cluster: out of reach of signals that are for the command, and missed when they end.

A signal to the command's whole process group (`timeout`, Ctrl-C, a service manager) is for the command, which drains
and then ends the cluster. Ray starts its daemons in that group; a cluster that ends first takes every request along,
and Ray's calls then spin for a minute.
"""

import os
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ray._private import services
from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET

NEEDED = {PROCESS_TYPE_GCS_SERVER: "GCS", PROCESS_TYPE_RAYLET: "raylet"}
"""Without these nothing works. What is forked by them goes with them."""
PATIENCE_S = 5.0
"""How long the command may take to end by itself after one of those has: what a batch has written is to be kept."""


@contextmanager
def apart() -> Iterator[None]:
    """Have Ray start its daemons, and all that they start, in sessions of their own: it has no option to."""
    popen = services.ConsolePopen
    services.ConsolePopen = partial(popen, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def end_idle(node: Any, *, verbose: bool) -> None:
    """End what an embedded cluster has no use for and Ray no option to leave out: its autoscaler, and the reader of all
    log files, ten times a second, for a terminal that is shown them only if `verbose`.
    """
    node.kill_monitor(check_alive=False)
    if not verbose:
        node.kill_log_monitor(check_alive=False)


class Watch:
    """Ends this process with an error message when a daemon has ended that it needs, and it does not end by itself.

    A context; from `release` on they may end.
    """

    def __init__(self, pids: dict[int, str]) -> None:
        """`pids`: process ids of children, and what they are called."""
        self._daemons = {os.pidfd_open(pid): name for pid, name in pids.items()}
        self._released, self._release = os.pipe()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.release()
        self._thread.join()
        for descriptor in (self._released, self._release, *self._daemons):
            os.close(descriptor)

    def release(self) -> None:
        """They are about to be ended."""
        os.write(self._release, b".")

    def _watch(self) -> None:
        ended, _, _ = select.select([*self._daemons, self._released], [], [])
        if self._released in ended or self._over.wait(PATIENCE_S):
            return
        name = self._daemons[ended[0]]
        print(f"gangway: Ray's {name} has ended, and with it all requests", file=sys.stderr)  # noqa: T201
        sys.stdout.flush()
        os._exit(1)


def needed(node: Any) -> dict[int, str]:
    """Process id to name of the daemons of this node that must not end."""
    return {node.all_processes[kind][0].process.pid: name for kind, name in NEEDED.items()}

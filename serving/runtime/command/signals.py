"""What a command does when it is told to end."""

import signal
import sys
import threading
import time
from collections.abc import Callable

TERMINATED = 143
"""Exit code after a SIGTERM that nobody drains for, as shells have it."""

TWICE_S = 1.0
"""A signal that comes again within that time, in seconds, is the same: `timeout` sends it to the command and to its
group, and a person needs longer to change their mind."""


def clear_up_on_sigterm() -> None:
    """Leave every context on SIGTERM; by default a process ends where it is, and its temporary files stay."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))


def stop_on_signals(
    stopping: threading.Event, hurry: threading.Event, clock: Callable[[], float] = time.monotonic
) -> None:
    """The first SIGTERM or Ctrl-C drains, the second does not. Set after Ray has set its own handlers."""
    first = 0.0

    def stop(*_: object) -> None:
        nonlocal first
        if not stopping.is_set():
            first = clock()
            stopping.set()
        elif clock() - first > TWICE_S:
            hurry.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

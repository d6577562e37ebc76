"""Ends a process whose step does not: in a collective whose peers wait elsewhere, in a kernel, or in Python.

Two threads outside the forward. One looks at the clock and can say where the step hangs; should the interpreter itself
be held up, so that no Python runs, `faulthandler`'s own thread, which the first keeps putting off, dumps all stacks and
exits.
"""

import faulthandler
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Self

LOOKS_PER_LIMIT = 20
MOST_S_BETWEEN_LOOKS = 1.0
WAITING_IN = ("collectives.py", "broadcast.py")
"""A rank that hangs in these waits for one that hangs elsewhere. Sums that C calls are not on Python's stack."""


class Watchdog:
    """Watches inside its `with` block, in the thread that computes the steps."""

    def __init__(
        self,
        limit_s: float,
        busy_since: Callable[[], float | None],
        summing: Callable[[], bool],
        on_hang: Callable[[str, bool], None],
    ) -> None:
        """`busy_since()`: when the step that runs began (`time.monotonic`), None between steps.

        `summing()`: whether it waits for other ranks in a sum.

        `on_hang(reason, waiting)` is called from the thread, and must end the process; `waiting`: for another rank.
        """
        self._limit_s = limit_s
        self._busy_since = busy_since
        self._summing = summing
        self._on_hang = on_hang
        self._interval_s = min(MOST_S_BETWEEN_LOOKS, limit_s / LOOKS_PER_LIMIT)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._watched = threading.get_ident()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._over.is_set():
            faulthandler.dump_traceback_later(self._limit_s + 5 * self._interval_s, exit=True)
            self._over.wait(self._interval_s)
            since = self._busy_since()
            if since is not None and time.monotonic() - since > self._limit_s:
                self._on_hang(*self._diagnose())
                return

    def _diagnose(self) -> tuple[str, bool]:
        """Where the step hangs, and whether it waits for another rank there."""
        stack = traceback.extract_stack(sys._current_frames()[self._watched])
        where = stack[-1]
        waiting = self._summing() or any(frame.filename.endswith(WAITING_IN) for frame in stack)
        doing = "waits for another rank" if waiting else "hangs"
        place = f"{where.name} ({where.filename}:{where.lineno})"
        return f"a step {doing} for over {self._limit_s:g} s, in {place}", waiting

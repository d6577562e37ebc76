"""Patience with what is missing."""

import time
from collections.abc import Callable


class Absence:
    """How long something has been missing without a break."""

    def __init__(self, patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s = patience_s
        self._clock = clock
        self._since: float | None = None

    def outlasts(self, present: bool) -> bool:
        """Take note of whether it is there now; returns whether it has been missing for longer than the patience."""
        if present:
            self._since = None
        elif self._since is None:
            self._since = self._clock()
        return self._since is not None and self._clock() - self._since >= self._patience_s

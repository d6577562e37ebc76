"""How much the keys of one name may have, at once and in a minute.

Counted in this process: a gateway that was started again begins at zero. What is refused does not count.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serving.config import SecurityConfig
from serving.errors import OverLimit

WINDOW_S = 60.0


@dataclass(slots=True)
class _Use:
    """What one caller has."""

    running: int = 0
    begun: deque[float] = field(default_factory=deque)
    """When the requests of the last `WINDOW_S` began, in seconds of the clock."""


class KeyLimits:
    """`security.max_concurrent_per_key` and `security.requests_per_minute_per_key`."""

    def __init__(self, security: SecurityConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once = security.max_concurrent_per_key
        self._per_minute = security.requests_per_minute_per_key
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    @contextmanager
    def counted(self, caller: str) -> Iterator[None]:
        """Count one request of `caller`, which runs as long as the context. Raises `OverLimit`."""
        use, now = self._uses.setdefault(caller, _Use()), self._clock()
        self._check(use, now)
        if self._per_minute:
            use.begun.append(now)
        use.running += 1
        try:
            yield
        finally:
            use.running -= 1

    def _check(self, use: _Use, now: float) -> None:
        if self._at_once and use.running >= self._at_once:
            raise OverLimit(f"{use.running} requests of this API key are running, its limit", code="key_concurrency")
        while use.begun and use.begun[0] <= now - WINDOW_S:
            use.begun.popleft()
        if self._per_minute and len(use.begun) >= self._per_minute:
            message = f"this API key has begun {len(use.begun)} requests within a minute, its limit"
            raise OverLimit(message, retry_after_s=use.begun[0] + WINDOW_S - now, code="key_rate")

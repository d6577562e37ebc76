"""Time that moves when a test says so."""

import datetime


class ManualClock:
    """Seconds since the start, and the same as Kubernetes writes it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._start = datetime.datetime(2026, 11, 23, 12, 0, tzinfo=datetime.UTC)

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def stamp(self) -> str:
        return (self._start + datetime.timedelta(seconds=self.now)).strftime("%Y-%m-%dT%H:%M:%SZ")

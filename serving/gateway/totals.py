"""Engine counters over all generations. Each generation counts from zero; metrics must never fall."""

from collections import defaultdict

from serving.messages import EngineStats

COUNTERS = ("steps", "prefill_tokens", "decode_tokens", "prefix_hit_tokens", "preemptions", "broadcast_bytes")
"""Fields of `EngineStats` that only grow within a generation."""


class Totals:
    """Sums what each report added to the one before."""

    def __init__(self) -> None:
        self.last = EngineStats()
        self.counters: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self.phase_seconds: dict[str, float] = defaultdict(float)
        self._generation: int | None = None

    def add(self, generation: int, stats: EngineStats) -> None:
        """Book a report; the first of a generation counts from zero."""
        before = self.last if generation == self._generation else EngineStats()
        for name in COUNTERS:
            self.counters[name] += max(0, getattr(stats, name) - getattr(before, name))
        for phase, seconds in stats.phase_seconds.items():
            self.phase_seconds[phase] += max(0.0, seconds - before.phase_seconds.get(phase, 0.0))
        self.last, self._generation = stats, generation

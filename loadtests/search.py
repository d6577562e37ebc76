"""The search for saturation: the arrival rate climbs by steps until one breaks its objective. Decisions, no Locust."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Objective:
    """The service level that every step must hold."""

    ttft_ms: float
    percent: float
    """Of the requests, whose first token must have come by then."""
    failures: float = 0.01
    """Allowed share of the requests."""


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen of one step."""

    rate: float
    """Arrivals per second."""
    seconds: float
    firsts: int
    """First tokens that came."""
    failures: int
    ttft_ms: float
    """At the objective's percentile."""

    @property
    def arrivals(self) -> float:
        """Requests to be expected."""
        return self.rate * self.seconds

    def breach(self, objective: Objective) -> str | None:
        """How it breaks the objective, None while it holds.

        First tokens that never came have no time. They are missed instead: their number is that of a Poisson process,
        and three standard deviations below its mean are not chance.
        """
        if self.firsts < self.arrivals - 3 * math.sqrt(self.arrivals) or not self.firsts:
            return f"{self.firsts} first tokens came where {self.arrivals:.0f} requests were sent"
        if self.failures > objective.failures * self.firsts:
            return f"{self.failures} of {self.firsts} requests failed"
        if self.ttft_ms > objective.ttft_ms:
            return f"TTFT p{objective.percent:g} was {self.ttft_ms:.0f} ms"
        return None


@dataclass
class Climb:
    """From `step` requests/s upwards."""

    objective: Objective
    step: float
    limit: float
    say: Callable[[str], None] = print
    rate: float = 0.0
    held: Window | None = None
    over: bool = False

    def __post_init__(self) -> None:
        self.rate = self.step

    def judge(self, window: Window) -> None:
        """Go on to the next rate, or end."""
        breach = window.breach(self.objective)
        self.say(f"{window.rate:g} requests/s: {breach or f'held, TTFT {window.ttft_ms:.0f} ms'}")
        if not breach:
            self.held = window
            self.rate += self.step
        self.over = bool(breach) or self.rate > self.limit
        if self.over:
            self.say(self.verdict(breach))

    def verdict(self, breach: str | None) -> str:
        """The search's result, in a sentence."""
        wanted = f"TTFT p{self.objective.percent:g} within {self.objective.ttft_ms:g} ms"
        if self.held is None:
            return f"Not even {self.rate:g} requests/s held {wanted}: {breach}."
        end = f"at {self.rate:g} {breach}" if breach else "higher rates were not tried"
        return f"Highest arrival rate that held {wanted}: {self.held.rate:g} requests/s; {end}."

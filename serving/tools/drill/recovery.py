"""What a fault did: a timeline from samples, what became of the requests, medians and maxima, and the table of it all.

Pure: moments come in as seconds on any one clock, and nothing here looks at a server. A moment is as fine as the polls
that it was seen by.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields

from rich import box
from rich.table import Table

NOTE = (
    "A text may also differ without any fault where the server's kernels give a token another value in another batch; "
    "serve with model.dtype=float32 to tell the two apart."
)
_HEADINGS = ("detected", "not ready", "restarted", "ready again", "first token", "all ended")


@dataclass(frozen=True, slots=True)
class Probe:
    """One look at `/readyz`."""

    at: float
    ready: bool
    """Answered 200; a refused or overdue look is not ready."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One look at `/v1/status`; None where it was refused or overdue."""

    at: float
    state: str | None
    generation: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Everything seen around one fault."""

    injected: float
    generation: int
    """Before the fault."""
    probes: Sequence[Probe]
    sightings: Sequence[Sighting]
    tokens: Sequence[float]
    """When each event of each stream came."""
    ended: Sequence[float]
    """When each request ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Seconds from the fault; None for what did not happen."""

    detected: float | None = None
    """The status was no longer "ready", or of another generation."""
    not_ready: float | None = None
    """`/readyz` first refused."""
    restarted: float | None = None
    """A new generation was formed; it has yet to load."""
    ready_again: float | None = None
    """`/readyz` answered 200 for good."""
    resumed: float | None = None
    """The first token of any stream that the new generation computed."""
    ended: float | None = None
    """The last request ended."""

    def values(self) -> list[float | None]:
        """In the order of the table's columns."""
        return [getattr(self, one.name) for one in fields(self)]


def timeline(seen: Observation) -> Timeline:
    """Work out what happened when."""
    probes = [probe for probe in seen.probes if probe.at >= seen.injected]
    sightings = [sighting for sighting in seen.sightings if sighting.at >= seen.injected]
    before = ("ready", seen.generation)
    moments = {
        "detected": _first(one.at for one in sightings if (one.state, one.generation) != before),
        "not_ready": _first(probe.at for probe in probes if not probe.ready),
        "restarted": _first(one.at for one in sightings if (one.generation or 0) > seen.generation),
        "ready_again": _ready_for_good(probes),
        "resumed": _resumed(seen, probes, sightings),
        "ended": max(seen.ended, default=None),
    }
    return Timeline(**{name: None if at is None else at - seen.injected for name, at in moments.items()})


def _first(moments: Iterable[float]) -> float | None:
    return min(moments, default=None)


def _ready_for_good(probes: Sequence[Probe]) -> float | None:
    """Readiness may come and go on the way: what counts is the end of the last gap."""
    gaps = [probe.at for probe in probes if not probe.ready]
    return _first(probe.at for probe in probes if probe.at > gaps[-1]) if gaps else None


def _resumed(seen: Observation, probes: Sequence[Probe], sightings: Sequence[Sighting]) -> float | None:
    """Tokens already on their way come for a while after the fault: they are none of the new generation's.

    So a token counts only when it came after the refusal, and after the last sight of a generation that was replaced.
    """
    refused = _first(probe.at for probe in probes if not probe.ready)
    if refused is None:
        return None
    replaced = any((one.generation or 0) > seen.generation for one in sightings)
    old = [one.at for one in sightings if replaced and one.generation == seen.generation]
    return _first(at for at in seen.tokens if at > max([refused, *old]))


def first_difference(reference: str, text: str) -> int | None:
    """The first character in which two texts differ; None when they are equal."""
    if reference == text:
        return None
    places = zip(reference, text, strict=False)
    return next((place for place, (one, other) in enumerate(places) if one != other), min(len(reference), len(text)))


@dataclass(frozen=True, slots=True)
class Difference:
    """A complete answer that is not the undisturbed one."""

    prompt: int
    character: int
    """The first that differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One fault under load."""

    number: int
    in_flight: int
    """Requests that had not ended when the fault came: only they were put to the test."""
    timeline: Timeline
    lost: list[str] = field(default_factory=list)
    """Why, for each request that ended in an error or before it was complete."""
    wrong: list[Difference] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillReport:
    """All rounds."""

    fault: str
    model: str
    requests: int
    """In each round."""
    max_tokens: int
    rounds: list[Round]
    median: Timeline
    maximum: Timeline
    note: str = NOTE

    def verdict(self, budget_s: float | None = None) -> str | None:
        """A sentence on what went wrong, None for nothing.

        `budget_s`: the most that the median of the first resumed token may be; without any such token it is not held.
        """
        faults = [*self._losses(), *self._differences()]
        if budget_s is not None:
            faults += _over_budget(self.median.resumed, budget_s)
        return f"{self.fault}: {'; '.join(faults)}" if faults else None

    def _losses(self) -> list[str]:
        lost = [reason for one in self.rounds for reason in one.lost]
        return [f"requests lost: {len(lost)} (the first: {lost[0]})"] if lost else []

    def _differences(self) -> list[str]:
        wrong = [difference for one in self.rounds for difference in one.wrong]
        return [f"texts wrong: {len(wrong)} (the first from character {wrong[0].character} on)"] if wrong else []

    def table(self) -> Table:
        """For a terminal."""
        title = f"{self.model}, {self.fault}: {self.requests} requests of {self.max_tokens} tokens"
        table = Table(title=title, caption=self._caption(), box=box.SIMPLE)
        for heading in ("round", "in flight", *_HEADINGS, "lost", "wrong"):
            table.add_column(heading, justify="right", no_wrap=True)
        for one in self.rounds:
            tail = (str(len(one.lost)), str(len(one.wrong)))
            table.add_row(str(one.number), str(one.in_flight), *_cells(one.timeline), *tail)
        table.add_section()
        table.add_row("median", "", *_cells(self.median), "", "")
        table.add_row("max", "", *_cells(self.maximum), "", "")
        return table

    def _caption(self) -> str:
        unit = "seconds after the fault"
        return f"{unit}\n{self.note}" if any(one.wrong for one in self.rounds) else unit


def _over_budget(resumed: float | None, budget_s: float) -> list[str]:
    if resumed is None:
        return [f"no token was resumed, so the budget of {budget_s:g} s is not held"]
    if resumed > budget_s:
        return [f"the first token was resumed after {resumed:.2f} s (median), over the budget of {budget_s:g} s"]
    return []


def _cells(timeline: Timeline) -> list[str]:
    return ["-" if value is None else f"{value:.2f}" for value in timeline.values()]


def over_all(rounds: Sequence[Round], choose: Callable[[list[float]], float]) -> Timeline:
    """One value a column, from the rounds that have it."""
    columns = {one.name: [getattr(each.timeline, one.name) for each in rounds] for one in fields(Timeline)}
    present = {name: [value for value in values if value is not None] for name, values in columns.items()}
    return Timeline(**{name: choose(values) if values else None for name, values in present.items()})


def sum_up(fault: str, model: str, requests: int, max_tokens: int, rounds: list[Round]) -> DrillReport:
    """The report of a drill."""
    return DrillReport(
        fault=fault,
        model=model,
        requests=requests,
        max_tokens=max_tokens,
        rounds=rounds,
        median=over_all(rounds, statistics.median),
        maximum=over_all(rounds, max),
    )

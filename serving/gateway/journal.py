"""The requests that the gateway has accepted and not yet ended: what a restart of the group must not lose.

An entry keeps the prompt, the sampling parameters with their seed, and every token handed on so far; that is all it
takes to go on elsewhere. Each time an entry is put on a link it gets a new wire id, so a delta that belongs to an
earlier link finds no entry and is dropped. Pure decisions: no I/O, no clock, no tensors.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from serving.errors import InvalidRequest, QueueFull
from serving.messages import Delta, Pooling, RequestId, Sampling, Submit, TokenId


class State(enum.Enum):
    """Where an entry stands."""

    WAITING = "waiting"
    """Accepted; on no link."""
    SUBMITTED = "submitted"
    """On a link; this life has brought no token yet."""
    RUNNING = "running"
    """On a link, with tokens."""
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Event(enum.Enum):
    """What happens to an entry."""

    SUBMIT = "submit"
    EMIT = "emit"
    LOSE = "lose"
    """It is on the link no more: the link is gone, or others go first."""
    FINISH = "finish"
    CANCEL = "cancel"
    """The client went away, or has all it wanted."""
    FAIL = "fail"
    """Refused by the engine, past its deadline, or the group is gone for good."""


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.WAITING, Event.SUBMIT): State.SUBMITTED,
    (State.WAITING, Event.CANCEL): State.CANCELLED,
    (State.WAITING, Event.FAIL): State.FAILED,
    (State.SUBMITTED, Event.EMIT): State.RUNNING,
    (State.SUBMITTED, Event.LOSE): State.WAITING,
    (State.SUBMITTED, Event.FINISH): State.FINISHED,
    (State.SUBMITTED, Event.CANCEL): State.CANCELLED,
    (State.SUBMITTED, Event.FAIL): State.FAILED,
    (State.RUNNING, Event.EMIT): State.RUNNING,
    (State.RUNNING, Event.LOSE): State.WAITING,
    (State.RUNNING, Event.FINISH): State.FINISHED,
    (State.RUNNING, Event.CANCEL): State.CANCELLED,
    (State.RUNNING, Event.FAIL): State.FAILED,
}
"""Every legal transition. Nothing leads out of a terminal state, so an entry ends exactly once."""

TERMINAL = frozenset({State.FINISHED, State.CANCELLED, State.FAILED})


class IllegalTransition(RuntimeError):
    """A defect in this program: the event cannot happen in that state. The state is unchanged."""


@dataclass(slots=True, eq=False)
class Entry:
    """One sequence that was promised to a client."""

    id: RequestId
    prompt: list[TokenId]
    sampling: Sampling
    priority: int = 0
    pooling: Pooling | None = None
    """A vector is computed again after a restart: nothing of it is kept."""
    cache_salt: str = ""
    emitted: list[TokenId] = field(default_factory=list)
    """Tokens that the client has or will get, in order."""
    cached_tokens: int = 0
    state: State = State.WAITING
    submissions: int = 0
    generation: int = 0
    """Whose link it was put on last; 0 when it was taken off again."""
    breaks: int = 0
    """Generations that broke while it was on their link, since it was last cleared."""
    breaks_alone: int = 0
    """Those of them in which it was a suspect, and so nothing else ran."""
    broke_at: int = 0
    """Tokens it had at the last of them."""

    @property
    def wire_id(self) -> RequestId:
        """Its id on the link that it is on."""
        return f"{self.id}.{self.submissions}"

    @property
    def suspect(self) -> bool:
        """Was on the link of two generations that broke (see `serving.gateway.suspects`)."""
        return self.breaks > 1

    @property
    def live(self) -> bool:
        return self.state not in TERMINAL

    def advance(self, event: Event) -> None:
        """Move along `TRANSITIONS`, or raise `IllegalTransition`."""
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise IllegalTransition(f"request {self.id}: {event.value} while {self.state.value}")
        self.state = following


class Journal:
    """All live entries, within bounds on their number and on the prompt tokens that wait."""

    def __init__(self, *, max_running: int, max_waiting: int, max_waiting_tokens: int) -> None:
        """`max_waiting` requests may be live beyond the `max_running` that the engine computes together."""
        self._max_live = max_running + max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._entries: dict[RequestId, Entry] = {}
        self._on_wire: dict[RequestId, Entry] = {}
        self._waiting_tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> list[Entry]:
        """Live entries in order of arrival."""
        return list(self._entries.values())

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of the entries that have no token yet."""
        return self._waiting_tokens

    def check_room(self, count: int = 1, prompt_tokens: int = 0) -> None:
        """Raise `QueueFull` if `count` more entries would be over the bounds, `InvalidRequest` if they always would."""
        if count > self._max_live:
            raise InvalidRequest(
                f"{count} sequences in one request; this server holds {self._max_live} at most", param="n"
            )
        if len(self._entries) + count > self._max_live:
            raise QueueFull(
                f"the queue is full: {len(self._entries)} requests are running or waiting", code="queue_full"
            )
        if self._waiting_tokens and self._waiting_tokens + prompt_tokens > self._max_waiting_tokens:
            raise QueueFull(f"the queue is full: {self._waiting_tokens} prompt tokens are waiting", code="queue_full")

    def accept(self, entries: Sequence[Entry]) -> None:
        """Take in all of them, or none and raise as `check_room` does."""
        self.check_room(len(entries), sum(len(entry.prompt) for entry in entries))
        for entry in entries:
            self._entries[entry.id] = entry
            self._waiting_tokens += len(entry.prompt)

    def submit(self, entry: Entry, generation: int = 0) -> Submit:
        """The message that puts a waiting entry on a generation's link, from the beginning or from where it stopped."""
        entry.advance(Event.SUBMIT)
        entry.submissions += 1
        entry.generation = generation
        self._on_wire[entry.wire_id] = entry
        return Submit(
            id=entry.wire_id,
            prompt=entry.prompt,
            emitted=list(entry.emitted),
            sampling=entry.sampling,
            priority=entry.priority,
            pooling=entry.pooling,
            cache_salt=entry.cache_salt,
        )

    def lose_link(self) -> None:
        """What was on the link waits again. Its deltas that may still come belong to nobody."""
        for entry in self._on_wire.values():
            entry.advance(Event.LOSE)
        self._on_wire.clear()

    def recall(self, entry: Entry) -> RequestId:
        """Let an entry on the link wait again; returns the wire id that the engine is to forget."""
        entry.advance(Event.LOSE)
        entry.generation = 0
        del self._on_wire[entry.wire_id]
        return entry.wire_id

    def on_link_of(self, generation: int) -> list[Entry]:
        """Live entries that this generation was the last to compute."""
        return [entry for entry in self._entries.values() if entry.generation == generation]

    def find(self, wire_id: RequestId) -> Entry | None:
        """The entry that is on the link under this id."""
        return self._on_wire.get(wire_id)

    def apply(self, delta: Delta) -> Entry | None:
        """Book what a step did to an entry: None when it is not (or no longer) on this link."""
        entry = self._on_wire.get(delta.id)
        if entry is None:
            return None
        if delta.tokens:
            self._book(entry, delta)
        if delta.error is not None:
            self.end([entry], Event.FAIL)
        elif delta.finish is not None:
            self.end([entry], Event.FINISH)
        return entry

    def _book(self, entry: Entry, delta: Delta) -> None:
        entry.advance(Event.EMIT)
        if not entry.emitted:
            self._waiting_tokens -= len(entry.prompt)
            entry.cached_tokens = delta.cached_tokens
        entry.emitted += delta.tokens

    def end(self, entries: Iterable[Entry], event: Event) -> list[RequestId]:
        """End them by FINISH, CANCEL or FAIL and forget them; the wire ids of those that the engine still knows."""
        known = []
        for entry in entries:
            entry.advance(event)
            del self._entries[entry.id]
            if self._on_wire.pop(entry.wire_id, None) is not None:
                known.append(entry.wire_id)
            if not entry.emitted:
                self._waiting_tokens -= len(entry.prompt)
        return known

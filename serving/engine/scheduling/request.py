"""One request as the scheduler knows it, and its states."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

from serving.engine.scheduling.block_manager import BlockTable
from serving.errors import ProtocolError
from serving.messages import FinishReason, NewSequence, Pooling, RequestId, Sampling, TokenId


class State(Enum):
    """Where a request is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.RUNNING, State.ENDED}),  # admitted; cancelled
    State.RUNNING: frozenset({State.WAITING, State.ENDED}),  # preempted; finished or cancelled
    State.ENDED: frozenset(),
}


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """A sequence of tokens that grows until it ends, and how much of it has been computed."""

    handle: int
    """Stands for the request in plans; grows with each arrival, so it is also the order of arrival."""
    id: RequestId
    owner: Hashable
    """Who submitted it and is told what becomes of it."""
    sampling: Sampling
    priority: int
    prompt_len: int
    tokens: list[TokenId]
    """Prompt, then all that was emitted, in earlier generations too."""
    limit: int
    """Length at which it ends, in tokens; the last one is emitted but never computed."""
    stop_ids: frozenset[TokenId]
    """Tokens that end it."""
    pooling: Pooling | None = None
    """Set: it ends when its prompt is computed, with a vector and no token."""
    table: BlockTable = field(default_factory=BlockTable)
    computed: int = 0
    """Leading tokens whose keys and values are in its blocks."""
    cached_tokens: int = 0
    """Prompt tokens that the first admission found in the prefix cache; 0 once reported."""
    announced: bool = False
    """Followers know its handle."""
    state: State = State.WAITING

    @property
    def order(self) -> tuple[int, int]:
        """First come, first served within a priority; the greatest is preempted first."""
        return self.priority, self.handle

    def move(self, state: State) -> None:
        """Enter `state`. Raises ProtocolError where the table has no such transition."""
        if state not in TRANSITIONS[self.state]:
            raise ProtocolError(f"request {self.id} cannot go from {self.state.value} to {state.value}")
        self.state = state

    def announcement(self) -> NewSequence:
        """What followers are told of it, once."""
        return NewSequence(
            handle=self.handle,
            tokens=self.tokens.copy(),
            prompt_len=self.prompt_len,
            sampling=self.sampling,
            pooling=self.pooling,
        )

    def finish_reason(self) -> FinishReason | None:
        """Whether the newest token ends the request. A stop token before `min_tokens` is a token like any other."""
        if self.tokens[-1] in self.stop_ids and len(self.tokens) - self.prompt_len >= self.sampling.min_tokens:
            return "stop"
        return "length" if len(self.tokens) >= self.limit else None

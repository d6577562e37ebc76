"""One request as the scheduler knows it, what it must satisfy, its states, and the queue of those that wait."""

import heapq
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

from serving.engine.blocks import BlockTable, salt_root
from serving.errors import ProtocolError
from serving.messages import FinishReason, NewSequence, Pooling, RequestId, Sampling, Submit, TokenId


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


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model and the KV cache allow one request."""

    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[TokenId]
    num_blocks: int
    block_size: int

    def refusal(self, submit: Submit) -> str | None:
        """Why it can never run, as a sentence for the caller; None when it can."""
        length, sampling = len(submit.prompt), submit.sampling
        if not length:
            return "the prompt is empty"
        if submit.pooling is not None and length > self.max_model_len:
            return f"the prompt has {length} tokens; {self.max_model_len} fit the model"
        if submit.pooling is None and length >= self.max_model_len:
            return f"the prompt has {length} tokens; with at least one to answer, {self.max_model_len} fit the model"
        named = [*submit.prompt, *submit.emitted, *sampling.logit_bias, *sampling.stop_token_ids]
        if min(named) < 0 or max(named) >= self.vocab_size:
            return f"a token id is outside the vocabulary of {self.vocab_size}"
        needed = -(-(self._length(submit) - 1) // self.block_size)
        if needed > self.num_blocks:
            return f"prompt and max_tokens need {needed} KV blocks, and there are only {self.num_blocks}"
        return None

    def request(self, submit: Submit, owner: Hashable, handle: int) -> Request:
        """A waiting request, made from a submission that was not refused."""
        stops = frozenset(submit.sampling.stop_token_ids)
        return Request(
            handle=handle,
            id=submit.id,
            owner=owner,
            sampling=submit.sampling,
            priority=submit.priority,
            prompt_len=len(submit.prompt),
            tokens=[*submit.prompt, *submit.emitted],
            limit=self._length(submit),
            stop_ids=stops if submit.sampling.ignore_eos else stops | self.eos_token_ids,
            pooling=submit.pooling,
            table=BlockTable(root=salt_root(submit.cache_salt)),
        )

    def _length(self, submit: Submit) -> int:
        if submit.pooling is not None:  # all of the prompt is computed, and the token behind it never comes
            return len(submit.prompt) + 1
        return min(len(submit.prompt) + submit.sampling.max_tokens, self.max_model_len)


class WaitingQueue:
    """Waiting requests by `Request.order`.

    An ended request stays in the heap until it surfaces or half of the heap is dead, so each operation costs
    O(log n) on average and memory is bounded by the living.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Request]] = []
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap) - self._dead

    def push(self, request: Request) -> None:
        heapq.heappush(self._heap, (*request.order, request))

    def head(self) -> Request | None:
        """The next to run; stays in the queue."""
        while self._heap and self._heap[0][2].state is State.ENDED:
            heapq.heappop(self._heap)
            self._dead -= 1
        return self._heap[0][2] if self._heap else None

    def pop(self) -> None:
        """Take out what `head` returned."""
        heapq.heappop(self._heap)

    def discard(self) -> None:
        """Note that one request in the queue has ended."""
        self._dead += 1
        if 2 * self._dead > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].state is not State.ENDED]
            heapq.heapify(self._heap)
            self._dead = 0

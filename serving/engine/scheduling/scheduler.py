"""Chooses what the next forward pass computes. Holds no tensors and does no I/O.

The caller alternates `schedule` and `complete`; `add` and `cancel` may come at any time between. Running requests are
served in order of (priority, arrival), and the last in that order is preempted first, so the first in order
always advances and every admitted request ends.
"""

from bisect import insort
from collections.abc import Hashable, Iterable, Sequence
from operator import attrgetter
from typing import TypedDict

from serving.config import EngineConfig
from serving.engine.scheduling.admission import Limits
from serving.engine.scheduling.block_manager import BlockManager
from serving.engine.scheduling.plan_builder import PlanBuilder
from serving.engine.scheduling.request import Request, State
from serving.engine.scheduling.waiting_queue import WaitingQueue
from serving.errors import ProtocolError
from serving.messages import Chunk, Delta, RequestId, StepPlan, Submit, TokenId, TokenLogprobs


class Counters(TypedDict):
    """The scheduler's part of `EngineStats`, under the same names."""

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    prefill_tokens: int
    decode_tokens: int
    prefix_hit_tokens: int
    preemptions: int


class Scheduler:
    """Continuous batching with chunked prefill over one pool of KV blocks."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        generation: int,
        num_blocks: int,
        max_model_len: int,
        vocab_size: int,
        eos_token_ids: frozenset[TokenId],
    ) -> None:
        self._config = config
        self._generation = generation
        self._limits = Limits(max_model_len, vocab_size, eos_token_ids, num_blocks, config.block_size)
        self._blocks = BlockManager(num_blocks, config.block_size, prefix_cache=config.prefix_cache)
        self._requests: dict[tuple[Hashable, RequestId], Request] = {}
        self._waiting = WaitingQueue()
        self._running: list[Request] = []
        """By `Request.order`."""
        self._finished: list[int] = []
        """Handles that followers have yet to forget."""
        self._in_flight: list[tuple[Request, int]] = []
        """The rows of the plan that is being computed."""
        self._number = 0
        self._arrivals = 0
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._prefix_hit_tokens = 0
        self._preemptions = 0

    def add(self, submit: Submit, owner: Hashable) -> Delta | None:
        """Queue a request. A Delta comes back at once when it can never run, or has nothing left to do."""
        refusal = self._limits.refusal(submit)
        if (owner, submit.id) in self._requests:
            refusal = f"a request with id {submit.id} is already here"
        if refusal is not None:
            return Delta(id=submit.id, error=refusal)
        self._arrivals += 1
        request = self._limits.request(submit, owner, self._arrivals)
        if len(request.tokens) >= request.limit:
            return Delta(id=submit.id, finish="length")
        self._requests[owner, request.id] = request
        self._waiting.push(request)
        return None

    def cancel(self, ids: Iterable[RequestId], owner: Hashable) -> None:
        """Drop an owner's requests. Ids that it does not have are ignored: they may just have ended."""
        for id_ in ids:
            request = self._requests.get((owner, id_))
            if request is not None:
                self._end(request)

    def cancel_owner(self, owner: Hashable) -> None:
        """Drop all that an owner has."""
        self.cancel([id_ for owner_, id_ in self._requests if owner_ == owner], owner)

    def schedule(self) -> StepPlan | None:
        """Every decode, then prefill chunks while the token budget lasts. None: there is nothing to tell anyone."""
        decodes = sum(len(request.tokens) - request.computed == 1 for request in self._running)
        builder = PlanBuilder(self._config.max_batched_tokens - decodes)
        self._continue_running(builder)
        self._admit_waiting(builder)
        if not (builder.decodes or builder.prefills or self._finished):
            return None
        return self._seal(builder)

    def idle(self) -> StepPlan:
        """A plan that computes nothing: the heartbeat between requests."""
        return self._seal(PlanBuilder(0))

    def stop_plan(self) -> StepPlan:
        """The last plan: everyone leaves the loop."""
        return StepPlan(generation=self._generation, number=self._next_number(), stop=True)

    def _continue_running(self, builder: PlanBuilder) -> None:
        """Plan the running requests in order. One that is preempted comes last, so it is never planned already."""
        index = 0
        while index < len(self._running):
            request = self._running[index]
            index += 1
            left = len(request.tokens) - request.computed
            count = min(left, builder.budget) if left > 1 else 1
            if not count or not self._make_room(builder, request, request.computed + count):
                continue
            if left == 1:
                builder.decodes.append((request, 1))
            else:
                builder.prefill(request, count)

    def _make_room(self, builder: PlanBuilder, request: Request, end: int) -> bool:
        """Give `request` blocks for its first `end` tokens, taken from the last in order; False if that is itself."""
        missing = self._blocks.blocks_for(end) - len(request.table.blocks)
        if missing <= 0:
            return True
        while self._blocks.available < missing:
            victim = self._running[-1]
            self._preempt(builder, victim)
            if victim is request:
                return False
        builder.placed.setdefault(request.handle, []).extend(self._blocks.allocate(request.table, missing))
        return True

    def _preempt(self, builder: PlanBuilder, request: Request) -> None:
        """Back to the queue, before all that came after it; its tokens are kept, its blocks are not."""
        request.move(State.WAITING)
        self._running.remove(request)
        self._blocks.free(request.table)
        request.computed = 0
        self._waiting.push(request)
        self._preemptions += 1
        builder.preempted.append(request.handle)

    def _admit_waiting(self, builder: PlanBuilder) -> None:
        """Start waiting requests in order; the first that does not fit holds back the rest, so none is passed by."""
        while builder.budget > 0 and not builder.preempted and len(self._running) < self._config.max_running:
            request = self._waiting.head()
            if request is None:
                return
            # A vector may need each position's hidden state, which the cache does not keep.
            hits = [] if request.pooling else self._blocks.match(request.table, request.tokens)
            if not self._fits(request, hits):
                return
            self._waiting.pop()
            self._start(builder, request, hits)

    def _fits(self, request: Request, hits: Sequence[int]) -> bool:
        """Whether there is room for all its tokens and, if it can grow that far, one block more.

        Running requests have all the blocks that they need now: budget is left over only when they are done with.
        """
        blocks = self._blocks
        wanted = min(blocks.blocks_for(len(request.tokens)) + 1, blocks.blocks_for(request.limit - 1))
        return wanted - len(hits) + blocks.idle(hits) <= blocks.available

    def _start(self, builder: PlanBuilder, request: Request, hits: list[int]) -> None:
        request.move(State.RUNNING)
        insort(self._running, request, key=attrgetter("order"))
        self._blocks.share(request.table, hits)
        request.computed = len(hits) * self._config.block_size
        self._prefix_hit_tokens += request.computed
        if not request.announced:
            self._announce(builder, request)
        if hits:
            builder.placed[request.handle] = hits
        count = min(len(request.tokens) - request.computed, builder.budget)
        self._make_room(builder, request, request.computed + count)
        builder.prefill(request, count)

    def _announce(self, builder: PlanBuilder, request: Request) -> None:
        request.announced = True
        request.cached_tokens = min(request.computed, request.prompt_len)
        builder.new.append(request.announcement())

    def _seal(self, builder: PlanBuilder) -> StepPlan:
        number = self._next_number()
        self._in_flight = builder.decodes + builder.prefills
        finished, self._finished = self._finished, []
        return StepPlan(
            generation=self._generation,
            number=number,
            finished=finished,
            preempted=builder.preempted,
            new=builder.new,
            placed=builder.placed,
            decode=[request.handle for request, _ in builder.decodes],
            prefill=[Chunk(request.handle, request.computed, count) for request, count in builder.prefills],
        )

    def _next_number(self) -> int:
        if self._in_flight:
            raise ProtocolError(f"step {self._number} has not been completed")
        self._number += 1
        return self._number

    def complete(
        self,
        plan: StepPlan,
        tokens: Sequence[TokenId],
        logprobs: Sequence[TokenLogprobs | None] | None = None,
        embeddings: Sequence[bytes] = (),
    ) -> dict[Hashable, list[Delta]]:
        """Take in what a plan's rows sampled and pooled; returns what to tell each owner.

        `tokens` (and `logprobs`, if any) belong to `plan.decode` in order, then to those chunks of `plan.prefill` that
        reach their sequence's end, without the rows that pool: theirs are the `embeddings`, in the same order. Raises
        ProtocolError, with nothing changed, when plan or numbers are wrong.
        """
        rows = self._close(plan, len(tokens), len(embeddings))
        drawn = zip(tokens, [None] * len(tokens) if logprobs is None else logprobs, strict=True)
        vectors = iter(embeddings)
        deltas: dict[Hashable, list[Delta]] = {}
        for request, count in rows:
            request.computed += count
            complete = request.computed == len(request.tokens)
            vector = next(vectors) if complete and request.pooling else None
            sampled = next(drawn) if complete and not request.pooling else None
            if request.state is State.ENDED:  # cancelled while it was computed
                continue
            self._blocks.publish(request.table, request.tokens, request.computed)
            if sampled is not None:
                deltas.setdefault(request.owner, []).append(self._emit(request, *sampled))
            if vector is not None:
                self._end(request)
                deltas.setdefault(request.owner, []).append(Delta(id=request.id, embedding=vector, finish="stop"))
        self._decode_tokens += len(plan.decode)
        self._prefill_tokens += sum(chunk.count for chunk in plan.prefill)
        return deltas

    def _close(self, plan: StepPlan, sampled: int, pooled: int) -> list[tuple[Request, int]]:
        """The rows that were in flight, once the answer is known to belong to them."""
        if (plan.generation, plan.number) != (self._generation, self._number):
            raise ProtocolError(f"step {plan.number} is not the one in flight, {self._number}")
        complete = [row for row, count in self._in_flight if row.computed + count == len(row.tokens)]
        vectors = sum(row.pooling is not None for row in complete)
        if sampled != len(complete) - vectors:
            raise ProtocolError(f"step {plan.number} samples {len(complete) - vectors} tokens, not {sampled}")
        if pooled != vectors:
            raise ProtocolError(f"step {plan.number} completes {vectors} vectors, not {pooled}")
        rows, self._in_flight = self._in_flight, []
        return rows

    def _emit(self, request: Request, token: TokenId, logprobs: TokenLogprobs | None) -> Delta:
        request.tokens.append(token)
        finish = request.finish_reason()
        if finish is not None:
            self._end(request)
        cached, request.cached_tokens = request.cached_tokens, 0
        return Delta(
            id=request.id,
            tokens=[token],
            logprobs=None if logprobs is None else [logprobs],
            finish=finish,
            stop_token=token if finish == "stop" else None,
            cached_tokens=cached,
        )

    def _end(self, request: Request) -> None:
        was_running = request.state is State.RUNNING
        request.move(State.ENDED)
        if was_running:
            self._running.remove(request)
            self._blocks.free(request.table)
        else:
            self._waiting.discard()
        if request.announced:
            self._finished.append(request.handle)
        del self._requests[request.owner, request.id]

    @property
    def has_work(self) -> bool:
        """Whether `schedule` has something to plan, be it only handles to forget."""
        return bool(self._running or len(self._waiting) or self._finished)

    def counters(self) -> Counters:
        """Plain values for `EngineStats`."""
        return Counters(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_blocks_used=self._blocks.used,
            kv_blocks_total=self._blocks.total,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            prefix_hit_tokens=self._prefix_hit_tokens,
            preemptions=self._preemptions,
        )

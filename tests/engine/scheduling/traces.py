"""A whole engine without tensors: scheduler, replica, and a KV store that remembers what was written where.

Each step checks all that must hold of any step, so a test only has to drive it. The sampled token is a function of the
request's seed and the position alone, so `answer` can say beforehand what each request must get.
"""

import hashlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from serving.config import EngineConfig
from serving.engine.execution.replica import Row, SequenceTable
from serving.engine.scheduling.request import Request
from serving.engine.scheduling.scheduler import Scheduler
from serving.messages import Delta, Sampling, StepPlan, Submit, TokenId, decode_plan, encode

VOCAB = 12
EOS = frozenset({2})
MAX_MODEL_LEN = 90


def draw(seed: int, position: int) -> TokenId:
    """The fake model: the token at `position` of a sequence with `seed`."""
    return hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=1).digest()[0] % VOCAB


def answer(submit: Submit) -> tuple[list[TokenId], str]:
    """All tokens that a request must still get, and how it ends."""
    sampling, emitted = submit.sampling, list(submit.emitted)
    stops = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else EOS)
    while len(emitted) < sampling.max_tokens and len(submit.prompt) + len(emitted) < MAX_MODEL_LEN:
        emitted.append(draw(sampling.seed, len(submit.prompt) + len(emitted)))
        if emitted[-1] in stops and len(emitted) >= sampling.min_tokens:
            return emitted[len(submit.emitted) :], "stop"
    return emitted[len(submit.emitted) :], "length"


@dataclass
class Outcome:
    """What one request's owner has been told so far."""

    tokens: list[TokenId] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None
    cached_tokens: int = 0
    deltas: int = 0

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.error is not None


class Engine:
    """Drives one generation; `step` raises AssertionError when an invariant is broken."""

    def __init__(self, config: EngineConfig, num_blocks: int) -> None:
        self.config = config
        self.num_blocks = num_blocks
        self.scheduler = Scheduler(
            config,
            generation=3,
            num_blocks=num_blocks,
            max_model_len=MAX_MODEL_LEN,
            vocab_size=VOCAB,
            eos_token_ids=EOS,
        )
        self.replica = SequenceTable(config.block_size)
        self.outcomes: dict[tuple[Hashable, str], Outcome] = {}
        self.store: dict[int, list[bytes]] = {block: [b""] * config.block_size for block in range(num_blocks)}
        """Block -> a fingerprint, at each offset, of the token written there, of all before it, and of the salt."""

    def add(self, submit: Submit, owner: Hashable = "g") -> Outcome:
        outcome = self.outcomes[owner, submit.id] = Outcome()
        delta = self.scheduler.add(submit, owner)
        if delta is not None:
            self._tell(owner, delta)
        return outcome

    def step(self) -> StepPlan | None:
        """Schedule, broadcast, compute, complete."""
        decoding = [r.handle for r in self._running if len(r.tokens) - r.computed == 1]
        plan = self.scheduler.schedule()
        if plan is None:
            return None
        check_conservation(self.scheduler)
        assert [handle for handle in decoding if handle not in plan.preempted] == plan.decode
        self._compute(plan)
        check_conservation(self.scheduler)
        self._check_replica()
        return plan

    def run(self, limit: int = 20_000) -> None:
        """Step until nothing is left to do."""
        for _ in range(limit):
            if self.step() is None:
                break
        assert not self.scheduler.has_work
        assert not self.replica.sequences
        assert self.scheduler.counters()["kv_blocks_used"] == 0

    @property
    def _running(self) -> list[Request]:
        return self.scheduler._running

    def _compute(self, plan: StepPlan) -> None:
        received = decode_plan(encode(plan))
        self.replica.apply(received)
        rows = self.replica.rows(received)
        assert sum(row.count for row in rows) <= self.config.max_batched_tokens
        assert len(self._running) <= self.config.max_running
        for row in rows:
            self._check_reads(row)
        for row in rows:
            self._write(row)
        sampled = [self._sample(row.handle) for row in rows if row.samples]
        self.replica.commit(received, sampled)
        for owner, deltas in self.scheduler.complete(plan, sampled).items():
            for delta in deltas:
                self._tell(owner, delta)

    def _check_reads(self, row: Row) -> None:
        """All that a row attends to was computed from its own tokens under its own salt, by a step before this one."""
        sequence, size = self.replica.sequences[row.handle], self.config.block_size
        for position, mark in zip(range(row.start), self._marks(row.handle), strict=False):
            assert self.store[sequence.blocks[position // size]][position % size] == mark

    def _write(self, row: Row) -> None:
        sequence, size = self.replica.sequences[row.handle], self.config.block_size
        marks = list(self._marks(row.handle))
        for position in range(row.start, row.start + row.count):
            block = sequence.blocks[position // size]
            assert sum(block in other.blocks for other in self.replica.sequences.values()) == 1
            self.store[block][position % size] = marks[position]

    def _marks(self, handle: int) -> Iterator[bytes]:
        salt = next(one.table.root for one in self.scheduler._requests.values() if one.handle == handle)
        return fingerprints(self.replica.sequences[handle].tokens, salt)

    def _sample(self, handle: int) -> TokenId:
        sequence = self.replica.sequences[handle]
        return draw(sequence.sampling.seed, len(sequence.tokens))

    def _tell(self, owner: Hashable, delta: Delta) -> None:
        outcome = self.outcomes[owner, delta.id]
        assert not outcome.ended
        assert delta.cached_tokens == 0 or outcome.deltas == 0
        assert delta.stop_token == (delta.tokens[-1] if delta.finish == "stop" else None)
        outcome.tokens += delta.tokens
        outcome.finish, outcome.error = delta.finish, delta.error
        outcome.cached_tokens += delta.cached_tokens
        outcome.deltas += 1

    def _check_replica(self) -> None:
        """Followers know each announced sequence as the scheduler does, preempted ones included."""
        for request in self.scheduler._requests.values():
            if not request.announced:
                continue
            sequence = self.replica.sequences[request.handle]
            assert sequence.tokens == request.tokens
            assert sequence.blocks == request.table.blocks
            assert sequence.computed == request.computed
            assert sequence.prompt_len == request.prompt_len
            assert sequence.sampling == request.sampling


def fingerprints(tokens: list[TokenId], mark: bytes = b"") -> Iterator[bytes]:
    """For each position, a value that stands for the token there and all before it."""
    for token in tokens:
        mark = hashlib.blake2b(mark + bytes([token]), digest_size=8).digest()
        yield mark


def check_conservation(scheduler: Scheduler) -> None:
    """Every block is free or referenced, as often as tables name it; an index entry names a block that carries it."""
    manager = scheduler._blocks
    named = [block for request in scheduler._running for block in request.table.blocks]
    assert [named.count(block) for block in range(manager.total)] == manager._references
    assert set(manager._free) == set(range(manager.total)) - set(named)
    assert manager.used + manager.available == manager.total
    assert {block: digest for digest, block in manager._block_of.items()} == manager._hash_of
    for request in scheduler._running:
        assert len(set(request.table.blocks)) == len(request.table.blocks)


def config(**changes: object) -> EngineConfig:
    """Small limits, so that short traces reach them."""
    return EngineConfig.model_validate({"max_batched_tokens": 16, "max_running": 4, "block_size": 4, **changes})


def submit(id_: str, prompt: list[TokenId], *, max_tokens: int = 5, seed: int = 1, **more: object) -> Submit:
    """A request that runs to `max_tokens` unless told otherwise; `more` goes to `Submit` and `Sampling` by name."""
    outer = {key: more.pop(key) for key in ("emitted", "priority", "cache_salt") if key in more}
    sampling = Sampling(**{"seed": seed, "max_tokens": max_tokens, "ignore_eos": True, **more})  # type: ignore[arg-type]
    return Submit(id=id_, prompt=prompt, sampling=sampling, **outer)  # type: ignore[arg-type]

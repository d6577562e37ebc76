"""Stand-ins for the group: an engine at the far end of a real link, and a registry in this process.

The engine has no model: the token at a position is a function of seed, prompt and position, or of a script. So a
resumed request must go on exactly where it was, and each test can work out the text that a client must see.
"""

import asyncio
import contextlib
import hashlib
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from serving.engine.scheduling.block_manager import BlockManager, BlockTable, salt_root
from serving.link import LinkServer
from serving.messages import (
    Beat,
    Cancel,
    Delta,
    Dropped,
    EngineStats,
    FinishReason,
    GroupState,
    Pulse,
    RankInfo,
    Snapshot,
    StepOutput,
    Submit,
    ToEngine,
    TokenLogprobs,
)

EOS = 2
VOCABULARY = 49152


def token_at(seed: int, prompt: list[int], position: int) -> int:
    """What the engine "samples" at a position of the whole sequence; never a special token."""
    digest = hashlib.blake2b(repr((seed, prompt, position)).encode(), digest_size=4).digest()
    return 100 + int.from_bytes(digest, "big") % (VOCABULARY - 100)


def vector_of(prompt: list[int], how: str) -> list[float]:
    """What the engine "pools": numbers that tell the prompt and the pooling, exact in float32."""
    return [float(len(prompt)), float(prompt[0]), float(prompt[-1]), float(("mean", "last", "first").index(how))]


def answer(seed: int, prompt: list[int], count: int) -> list[int]:
    """The whole answer of an engine without a script."""
    return [token_at(seed, prompt, len(prompt) + place) for place in range(count)]


@dataclass
class Sequence:
    peer: bytes
    submit: Submit
    emitted: list[int]
    cached_tokens: int


@dataclass
class Behaviour:
    """How the engine acts; may be changed while it runs."""

    script: list[int] | None = None
    """Tokens of every answer, instead of `token_at`; ends with EOS."""
    pause_s: float = 0.0
    """Time of a step."""
    tokens_per_step: int = 1
    cached_tokens: int = 0
    """What every request found in the prefix cache, unless there is one:"""
    prefix_cache: BlockManager | None = None
    refuse: str | None = None
    """Answer submits with this error."""
    breaks_on: Callable[[Submit, int], bool] = lambda _submit, _emitted: False
    """A sequence with so many tokens ends the engine, like a rank that dies of it."""
    max_emitted: int = 10**9
    """Tokens of each request that it gets to before it hangs."""


class FakeEngine:
    """Rank 0 of one generation, in a thread."""

    def __init__(self, generation: int, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.server = LinkServer("127.0.0.1", generation)
        self.generation = generation
        self.submitted: list[Submit] = []
        self.cancelled: list[str] = []
        self.running: dict[str, Sequence] = {}
        self.beats = 0
        self.silent = False
        self.broken = False
        """A sequence has ended it; nobody was told yet."""
        self.drops = False
        """Forgets each gateway that writes, and says so."""
        self._steps = 0
        self._peers: set[bytes] = set()
        self._pulsed_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"fake-engine-{generation}", daemon=True)
        self._thread.start()

    def die(self) -> None:
        """Vanish with everything in flight."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            for peer, message in self.server.receive(0.0 if self._busy() else 0.01):
                self._take(peer, message)
            if self.silent:
                continue
            self._step()
            if time.monotonic() - self._pulsed_at > 0.05:
                self._pulse()
        self.server.close()

    def _busy(self) -> bool:
        return any(len(one.emitted) < self.behaviour.max_emitted for one in list(self.running.values()))

    def _take(self, peer: bytes, message: ToEngine) -> None:
        if self.drops:
            self.server.send(peer, Dropped(generation=self.generation, stats=self.stats()))
            self.running = {id_: one for id_, one in self.running.items() if one.peer != peer}
            self._peers.discard(peer)
            self.drops = False
            return
        self._peers.add(peer)
        match message:
            case Submit():
                self.submitted.append(message)
                self.running[message.id] = Sequence(peer, message, list(message.emitted), self._find(message))
            case Cancel():
                self.cancelled += message.ids
                for id_ in message.ids:
                    self.running.pop(id_, None)
            case Beat():
                self.beats += 1

    def _find(self, submit: Submit) -> int:
        """Tokens of the prompt in the prefix cache, where it is from now on."""
        blocks = self.behaviour.prefix_cache
        if blocks is None:
            return self.behaviour.cached_tokens
        table = BlockTable(root=salt_root(submit.cache_salt))
        hits = blocks.match(table, submit.prompt)
        blocks.share(table, hits)
        blocks.allocate(table, blocks.blocks_for(len(submit.prompt)) - len(hits))
        blocks.publish(table, submit.prompt, len(submit.prompt))
        blocks.free(table)
        return len(hits) * blocks.block_size

    def _pulse(self) -> None:
        self._pulsed_at = time.monotonic()
        for peer in self._peers:
            self.server.send(peer, Pulse(generation=self.generation, stats=self.stats()))

    def _step(self) -> None:
        deltas: dict[bytes, list[Delta]] = {}
        if any(self.behaviour.breaks_on(one.submit, len(one.emitted)) for one in self.running.values()):
            self.broken = True
            self._stop.set()
            return
        for one in list(self.running.values()):
            delta = self._advance(one)
            if delta is not None:
                deltas.setdefault(one.peer, []).append(delta)
        if not deltas:
            return
        if self.behaviour.pause_s:
            self._stop.wait(self.behaviour.pause_s)
        self._steps += 1
        for peer, some in deltas.items():
            output = StepOutput(generation=self.generation, step=self._steps, deltas=some, stats=self.stats())
            self.server.send(peer, output)

    def _advance(self, one: Sequence) -> Delta | None:
        if self.behaviour.refuse is not None:
            del self.running[one.submit.id]
            return Delta(id=one.submit.id, error=self.behaviour.refuse)
        if one.submit.pooling is not None and self.behaviour.max_emitted:
            del self.running[one.submit.id]
            vector = vector_of(one.submit.prompt, one.submit.pooling.how)
            return Delta(id=one.submit.id, embedding=struct.pack("<4f", *vector), finish="stop")
        tokens: list[int] = []
        finish: FinishReason | None = None
        while finish is None and len(tokens) < self.behaviour.tokens_per_step:
            if len(one.emitted) >= self.behaviour.max_emitted:
                break
            token = self._next(one)
            tokens.append(token)
            one.emitted.append(token)
            finish = self._finish(one, token)
        if not tokens:
            return None
        if finish is not None:
            del self.running[one.submit.id]
        logprobs = [TokenLogprobs(-0.5, [(token, -0.5), (token - 1, -1.5)]) for token in tokens]
        return Delta(
            id=one.submit.id,
            tokens=tokens,
            finish=finish,
            stop_token=tokens[-1] if finish == "stop" else None,
            logprobs=logprobs if one.submit.sampling.logprobs >= 0 else None,
            cached_tokens=one.cached_tokens,
        )

    def _next(self, one: Sequence) -> int:
        if self.behaviour.script is not None:
            return self.behaviour.script[min(len(one.emitted), len(self.behaviour.script) - 1)]
        position = len(one.submit.prompt) + len(one.emitted)
        return token_at(one.submit.sampling.seed, one.submit.prompt, position)

    def _finish(self, one: Sequence, token: int) -> FinishReason | None:
        sampling = one.submit.sampling
        if (token == EOS and not sampling.ignore_eos) or token in sampling.stop_token_ids:
            return "stop"
        return "length" if len(one.emitted) >= sampling.max_tokens else None

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self.running),
            kv_blocks_used=3,
            kv_blocks_total=100,
            steps=self._steps,
            decode_tokens=self._steps,
            phase_seconds={"plan": 0.001 * self._steps, "forward": 0.01 * self._steps},
        )


class FakeGroup:
    """A registry with one group, whose generations are `FakeEngine`s. Thread-safe."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self.engine: FakeEngine | None = None
        self.engines: list[FakeEngine] = []
        self.gone = False
        self.snapshot = Snapshot(version=0, generation=0, state="starting")
        self._lock = threading.Lock()

    async def changed(self, after_version: int, timeout_s: float) -> Snapshot | None:
        with contextlib.suppress(AssertionError):
            await until(lambda: self.gone or self.snapshot.version > after_version, timeout_s)
        return None if self.gone else self.snapshot

    def turn(self, state: GroupState, **changes: object) -> None:
        """Publish a state."""
        with self._lock:
            version = self.snapshot.version + 1
            self.snapshot = msgspec.structs.replace(self.snapshot, version=version, state=state, **changes)

    def start(self) -> FakeEngine:
        """A new generation is ready."""
        generation = self.snapshot.generation + 1
        self.engine = FakeEngine(generation, self.behaviour)
        self.engines.append(self.engine)
        rank = RankInfo(rank=0, node_id="n0", ip="127.0.0.1", pid=1, device="cpu", shard_bytes=10, rss_bytes=20)
        self.turn("ready", generation=generation, endpoint=self.engine.server.endpoint, ranks=[rank])
        return self.engine

    def kill(self, state: GroupState = "restarting") -> None:
        """The generation dies, and the registry says so."""
        assert self.engine is not None
        self.engine.die()
        restarts, breaks = self.snapshot.restarts + 1, self.snapshot.breaks + 1
        reason = "rank 1 died"
        self.turn(state, endpoint=None, restarts=restarts, breaks=breaks, first_failure=reason, last_failure=reason)

    def close(self) -> None:
        for engine in self.engines:
            engine.die()


@contextmanager
def fake_group() -> Iterator[FakeGroup]:
    group = FakeGroup()
    try:
        yield group
    finally:
        group.close()


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for a condition; fails when it does not come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.005)

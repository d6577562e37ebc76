"""Rank 0's side of the conversation with its gateways: commands in, one message a step out.

A gateway that falls silent, or that lost a message because it did not read, is dropped with all its requests. It may be
alive all the same: whatever it says later is answered with `Dropped`, and it connects and submits again.
"""

import logging
import time
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence

from serving.engine.distributed.broadcast import LONGEST_SILENCE_S
from serving.engine.scheduling.scheduler import Scheduler
from serving.link import LinkServer
from serving.messages import (
    Beat,
    Cancel,
    Delta,
    Dropped,
    EngineStats,
    Pulse,
    StepOutput,
    Submit,
    ToEngine,
    ToGateway,
)

log = logging.getLogger(__name__)


class GatewaySessions:
    """Hands commands to the scheduler and results to the gateways that asked."""

    def __init__(
        self,
        scheduler: Scheduler,
        link: LinkServer,
        generation: int,
        peer_timeout_s: float,
        seconds: MutableMapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`seconds` is the runner's count of time by phase; this side adds its own phases to it."""
        self._scheduler = scheduler
        self._link = link
        self._generation = generation
        self._peer_timeout_s = peer_timeout_s
        self._seconds = seconds
        self._clock = clock
        self._heard: dict[bytes, float] = {}
        """When each gateway was last heard."""
        self._told: dict[bytes, float] = {}
        """When each gateway was last sent something; one that is new was told nothing yet."""
        self._dropped: set[bytes] = set()
        """Gateways that are to connect again; one that does has a new name here."""
        self._steps = 0
        """Plans that computed something."""
        self._broadcast_bytes = 0

    def receive(self, arrivals: Sequence[tuple[bytes, ToEngine]]) -> None:
        """Apply what gateways sent, and drop those that have been silent for too long."""
        now = self._clock()
        for peer, message in arrivals:
            if peer in self._dropped:
                self._link.send(peer, Dropped(generation=self._generation, stats=self.stats()))
                continue
            self._heard[peer] = now
            match message:
                case Submit():
                    self._submit(peer, message)
                case Cancel():
                    self._scheduler.cancel(message.ids, peer)
                case Beat():
                    pass
        for peer in [peer for peer, heard in self._heard.items() if now - heard > self._peer_timeout_s]:
            self._drop(peer, f"was silent for {self._peer_timeout_s:g} s")

    def _submit(self, peer: bytes, submit: Submit) -> None:
        ended = self._scheduler.add(submit, peer)
        if ended is not None:
            self._deliver(peer, self._output([ended]))

    def send(self, results: Mapping[Hashable, list[Delta]]) -> None:
        """One message to each gateway with all that the step did to its requests."""
        self._steps += 1
        for peer, deltas in results.items():
            assert isinstance(peer, bytes)
            self._deliver(peer, self._output(deltas))

    def keep_alive(self) -> None:
        """Tell the gateways that were sent nothing for a while, or nothing ever, that rank 0 lives."""
        due = self._clock() - LONGEST_SILENCE_S / 2
        for peer in list(self._heard):
            if self._told.get(peer, float("-inf")) < due:
                self._deliver(peer, Pulse(generation=self._generation, stats=self.stats()))

    def _deliver(self, peer: bytes, message: ToGateway) -> None:
        if peer in self._dropped:
            return
        if self._link.send(peer, message):
            self._told[peer] = self._clock()
        else:
            self._drop(peer, "is gone, or does not read")

    def _drop(self, peer: bytes, reason: str) -> None:
        log.warning("a gateway %s: its requests are dropped", reason)
        self._scheduler.cancel_owner(peer)
        self._dropped.add(peer)
        self._heard.pop(peer, None)
        self._told.pop(peer, None)

    def record(self, sent: int, **seconds: float) -> None:
        """Add a step's broadcast bytes and its seconds by phase."""
        self._broadcast_bytes += sent
        for phase, spent in seconds.items():
            self._seconds[phase] = self._seconds.get(phase, 0.0) + spent

    def stats(self) -> EngineStats:
        return EngineStats(
            **self._scheduler.counters(),
            steps=self._steps,
            broadcast_bytes=self._broadcast_bytes,
            phase_seconds=dict(self._seconds),
        )

    def _output(self, deltas: list[Delta]) -> StepOutput:
        return StepOutput(generation=self._generation, step=self._steps, deltas=deltas, stats=self.stats())

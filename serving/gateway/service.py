"""The gateway's life apart from HTTP: requests are accepted into the journal, computed by the group, and handed back.

A request outlives the generation that computes it: whenever a link stands, everything in the journal that waits is
submitted on it, with the tokens that its client already has. Runs in one event loop; nothing here blocks.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Sequence

from serving.config import Config
from serving.errors import DeadlineExceeded, GangwayError, GroupUnavailable, InvalidRequest
from serving.gateway.generation import Choice, Generation, GenerationRequest, sequences
from serving.gateway.journal import Entry, Event, Journal, State
from serving.gateway.tokenizer import Tokenizer
from serving.gateway.uplink import GroupView, Uplink, end_reason
from serving.messages import Cancel, Delta, RequestId, StepOutput

log = logging.getLogger(__name__)

_STARTING_RETRY_S = 5.0
"""When to ask again while the group loads its model."""


class Observer:
    """Is told what happens, in the service's event loop; overrides what it minds. Seconds throughout."""

    def accepted(self, generation: Generation) -> None:
        """In the task of the request."""

    def submitted(self, generation: Generation, choice: Choice) -> None:
        """A sequence is put on a link; `choice.entry.submissions` says for which time."""

    def first_tokens(self, generation: Generation, choice: Choice, seconds: float, count: int) -> None:
        """A sequence's first delta, so long after the acceptance."""

    def next_tokens(self, seconds: float, count: int) -> None:
        """A later delta, so long after the one before."""

    def ended(self, generation: Generation, outcome: str, seconds: float) -> None:
        """A request is over."""

    def close(self) -> None:
        """The service has stopped. May block."""


class Service:
    """One gateway process. `start` it in the event loop that will use it."""

    def __init__(self, config: Config, tokenizer: Tokenizer, group: GroupView) -> None:
        self.tokenizer = tokenizer
        self.journal = Journal(
            max_running=config.engine.max_running,
            max_waiting=config.http.max_waiting,
            max_waiting_tokens=config.http.max_waiting_tokens,
        )
        self.uplink = Uplink(group, config.fault, self)
        self.observers: list[Observer] = []
        self._fault = config.fault
        self._owners: dict[RequestId, tuple[Generation, Choice]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._task: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Begin to follow the group."""
        self._task = asyncio.create_task(self.uplink.run())

    async def stop(self) -> None:
        """End whatever is left, and close the link."""
        self._draining = True
        self.on_end("this server is shutting down")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for observer in self.observers:
            await asyncio.to_thread(observer.close)

    async def drain(self) -> None:
        """Accept nothing more, and wait for what runs, up to `fault.drain_timeout_s`."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._fault.drain_timeout_s):
                await self._idle.wait()
        self.on_end("this server is shutting down")

    # ------------------------------------------------------------ state

    @property
    def state(self) -> str:
        """The group's state as this gateway sees it; "ready" only while a generation is heard."""
        if self._draining:
            return "draining"
        if not self.uplink.registered and not self.uplink.ready:
            return "unregistered" if self.uplink.ever_ready else "starting"
        snapshot = self.uplink.snapshot
        if snapshot is None:
            return "starting"
        return "connecting" if snapshot.state == "ready" and not self.uplink.ready else snapshot.state

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    def count(self, *states: State) -> int:
        """Live requests in any of `states`."""
        return sum(entry.state in states for entry in self.journal.entries)

    def check_admission(self) -> None:
        """Raise `GroupUnavailable` if no request can be taken now, `QueueFull` if there is no room for another."""
        state = self.state
        if state in {"draining", "failed", "stopped", "unregistered"} or not self.uplink.ever_ready:
            raise self.unavailable()
        self.journal.check_room()

    def unavailable(self) -> GroupUnavailable:
        """Why nothing is computed now, and when to ask again."""
        state, snapshot = self.state, self.uplink.snapshot
        reason = f"the group is {state}"
        if state in {"failed", "stopped"} and snapshot is not None:
            reason = end_reason(snapshot)
        return GroupUnavailable(reason, retry_after_s=_STARTING_RETRY_S, code=f"group_{state}")

    # ------------------------------------------------------------ requests

    def generate(self, request: GenerationRequest) -> Generation:
        """Accept a request; use the result as an async context manager, or it is never let go.

        Raises `QueueFull`, `GroupUnavailable`, or `InvalidRequest` when it can never be accepted.
        """
        self.check_admission()
        entries = sequences(request)
        self.journal.accept(entries)
        choices = [
            Choice(index, entry, request.stop, self.tokenizer.detokenizer()) for index, entry in enumerate(entries)
        ]
        generation = Generation(request, choices, self._release)
        self._owners.update({choice.entry.id: (generation, choice) for choice in choices})
        self._idle.clear()
        for observer in self.observers:
            observer.accepted(generation)
        if request.timeout_s is not None:
            loop = asyncio.get_running_loop()
            generation.deadline = loop.call_later(request.timeout_s, self._expire, generation)
        self._submit(entries)
        return generation

    def _submit(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if not self.uplink.linked:
                return
            self.uplink.send(self.journal.submit(entry))
            for observer in self.observers:
                observer.submitted(*self._owners[entry.id])

    def _expire(self, generation: Generation) -> None:
        started = any(choice.entry.emitted for choice in generation.choices)
        where = "before it was complete" if started else "while it was waiting"
        code = "deadline_exceeded" if started else "queue_timeout"
        message = f"timeout_s of {generation.request.timeout_s:g} s passed {where}"
        self._fail(generation, DeadlineExceeded(message, code=code))

    def _fail(self, generation: Generation, error: GangwayError) -> None:
        self._end(generation.choices, Event.FAIL)
        generation.fail(error)

    def _release(self, generation: Generation) -> None:
        """The client's side is done, for whatever reason."""
        if generation.deadline is not None:
            generation.deadline.cancel()
        cancelled = self._end(generation.choices, Event.CANCEL)
        for choice in generation.choices:
            self._owners.pop(choice.entry.id, None)
        if not self._owners:
            self._idle.set()
        seconds = time.monotonic() - generation.accepted_at
        outcome = "cancelled" if cancelled else generation.outcome
        log.info(
            "%s after %.3f s, %d tokens", outcome, seconds, sum(one.completion_tokens for one in generation.choices)
        )
        for observer in self.observers:
            observer.ended(generation, outcome, seconds)

    def _end(self, choices: Sequence[Choice], event: Event) -> bool:
        """End those that have not ended, and tell the engine; whether there were any."""
        live = [choice.entry for choice in choices if choice.entry.live]
        known = self.journal.end(live, event)
        if known:
            self.uplink.send(Cancel(ids=known))
        return bool(live)

    # ------------------------------------------------------------ what the uplink tells

    def on_link(self) -> None:
        self._submit(self.journal.entries)

    def on_loss(self) -> None:
        self.journal.lose_link()

    def on_output(self, output: StepOutput) -> None:
        now = time.monotonic()
        for delta in output.deltas:
            entry = self.journal.apply(delta)
            if entry is not None:
                generation, choice = self._owners[entry.id]
                self._hand_on(generation, choice, delta, now)

    def on_end(self, reason: str) -> None:
        for generation in {id(owner): owner for owner, _ in self._owners.values()}.values():
            if any(choice.entry.live for choice in generation.choices):
                self._fail(generation, GroupUnavailable(reason, retry_after_s=_STARTING_RETRY_S, code="group_gone"))

    def _hand_on(self, generation: Generation, choice: Choice, delta: Delta, now: float) -> None:
        if delta.tokens:
            self._observe(generation, choice, len(delta.tokens), now)
        if delta.error is not None:
            self._fail(generation, InvalidRequest(delta.error))
            return
        if choice.push(delta):
            self._end([choice], Event.FINISH)
        generation.advanced(choice)

    def _observe(self, generation: Generation, choice: Choice, count: int, now: float) -> None:
        for observer in self.observers:
            if choice.first_token_at is None:
                observer.first_tokens(generation, choice, now - generation.accepted_at, count)
            else:
                observer.next_tokens(now - choice.last_token_at, count)
        choice.first_token_at = choice.first_token_at or now
        choice.last_token_at = now

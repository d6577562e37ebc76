"""The gateway's life apart from HTTP: requests are accepted into the journal, computed by the group, and handed back.

A request outlives the generation that computes it: whenever a link stands, everything in the journal that waits is
submitted on it, with the tokens that its client already has. Runs in one event loop; nothing here blocks.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from serving.config import Config
from serving.errors import DeadlineExceeded, GroupUnavailable, InvalidRequest
from serving.gateway.generation import Choice, Generation, GenerationRequest, sequences
from serving.gateway.journal import Entry, Event, Journal, State
from serving.gateway.suspects import Suspects
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
        self.suspects = Suspects()
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
        self._task.add_done_callback(_uplink_ended)

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

        Raises `QueueFull`, `GroupUnavailable`, `InvalidRequest` when it can never be accepted, or `RequestBreaksGroup`.
        """
        self.check_admission()
        entries = sequences(request)
        self.suspects.check(entries)
        self.journal.accept(entries)
        choices = [
            Choice(index, entry, request.stop, self.tokenizer.detokenizer(entry.prompt))
            for index, entry in enumerate(entries)
        ]
        generation = Generation(request, choices, self._release)
        self._owners.update({choice.entry.id: (generation, choice) for choice in choices})
        self._idle.clear()
        self._tell(lambda observer: observer.accepted(generation))
        if request.timeout_s is not None:
            loop = asyncio.get_running_loop()
            generation.deadline = loop.call_later(request.timeout_s, self._expire, generation)
        self._submit()
        return generation

    def _submit(self) -> None:
        """Put on the link whatever may be there."""
        for entry in self.suspects.admissible(self.journal.entries):
            if not self.uplink.linked:
                return
            if entry.suspect:
                log.warning("%s: it runs alone now", _sizes(entry))
            self.uplink.send(self.journal.submit(entry, self.uplink.generation))
            self._tell(lambda observer, entry=entry: observer.submitted(*self._owners[entry.id]))  # type: ignore[misc]

    def _tell(self, event: Callable[[Observer], None]) -> None:
        """An error in counting or tracing must not hurt what is counted."""
        for observer in self.observers:
            try:
                event(observer)
            except Exception:
                log.exception("an observer failed")

    def _expire(self, generation: Generation) -> None:
        started = any(choice.entry.emitted for choice in generation.choices)
        where = "before it was complete" if started else "while it was waiting"
        code = "deadline_exceeded" if started else "queue_timeout"
        message = f"timeout_s of {generation.request.timeout_s:g} s passed {where}"
        self._fail(generation, DeadlineExceeded(message, code=code))

    def _fail(self, generation: Generation, error: Exception) -> None:
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
        self._tell(lambda observer: observer.ended(generation, outcome, seconds))

    def _end(self, choices: Sequence[Choice], event: Event) -> bool:
        """End those that have not ended, and tell the engine; whether there were any."""
        live = [choice.entry for choice in choices if choice.entry.live]
        known = self.journal.end(live, event)
        if known:
            self.uplink.send(Cancel(ids=known))
        if any(entry.suspect for entry in live):
            self._submit()
        return bool(live)

    # ------------------------------------------------------------ what the uplink tells

    def on_link(self) -> None:
        self._submit()

    def on_loss(self) -> None:
        self.journal.lose_link()

    def on_break(self, generation: int) -> None:
        present = self.journal.on_link_of(generation)
        for entry in self.suspects.blame(present):
            log.error("%s: it has broken the group whenever it ran alone, and is given up", _sizes(entry))
            error = self.suspects.condemn(entry)
            for equal in self.suspects.equals(entry, self.journal.entries):
                self._fail(self._owners[equal.id][0], error)
        for entry in present:
            if entry.suspect and entry.live:
                log.warning("%s: it was there when %d generations broke, a suspect", _sizes(entry), entry.breaks)

    def on_output(self, output: StepOutput) -> None:
        now = time.monotonic()
        for delta in output.deltas:
            entry = self.journal.find(delta.id)
            if entry is None:
                continue
            generation, choice = self._owners[entry.id]
            try:
                self._take(entry, generation, choice, delta, now)
            except Exception as error:  # a defect that one request brings out must not stall all others
                log.error("%s: what came for it cannot be taken (%s)", _sizes(entry), type(error).__name__)
                self._fail(generation, error)

    def _take(self, entry: Entry, generation: Generation, choice: Choice, delta: Delta, now: float) -> None:
        self.journal.apply(delta)
        self._hand_on(generation, choice, delta, now)
        if self.suspects.clears(entry):
            self._clear(entry)
        elif entry.suspect and not entry.live:
            self._submit()

    def _clear(self, entry: Entry) -> None:
        """The next suspect is to be alone too: until all are cleared, this one waits."""
        log.warning("%s: no suspect any more", _sizes(entry))
        if entry.live and any(other.suspect for other in self.journal.entries):
            self.uplink.send(Cancel(ids=[self.journal.recall(entry)]))
        self._submit()

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
        if choice.first_token_at is None:
            self._tell(lambda observer: observer.first_tokens(generation, choice, now - generation.accepted_at, count))
        else:
            self._tell(lambda observer: observer.next_tokens(now - choice.last_token_at, count))
        choice.first_token_at = choice.first_token_at or now
        choice.last_token_at = now


def _sizes(entry: Entry) -> str:
    """What a log may say of a request."""
    return f"request {entry.id} ({len(entry.prompt)} prompt tokens, {len(entry.emitted)} emitted)"


def _uplink_ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        log.critical("the uplink has ended: this gateway reaches no group any more", exc_info=task.exception())

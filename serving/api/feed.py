"""One request of many inputs, fed into the journal as places free up, so that it never fills the queue for others."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace

from serving.api.sse import whole
from serving.config import Config
from serving.errors import DeadlineExceeded, QueueFull
from serving.gateway.generation import Choice, Generation, GenerationRequest, Prompt
from serving.gateway.service import Observer, Service

_PARTS_AT_ONCE = 2
"""One is computed while the next one waits."""
_SHARE = 4
"""A part takes at most so little, as a fraction, of the places and of the tokens that may wait."""


class Feed(Observer):
    """Knows how much of the queue one request may take, and when there is room again."""

    def __init__(self, service: Service, config: Config) -> None:
        self._service = service
        places = config.engine.max_running + config.http.max_waiting
        self._inputs = max(1, min(config.engine.max_running, places // _SHARE))
        self._tokens = config.http.max_waiting_tokens // _SHARE
        self._room = asyncio.Event()
        service.observers.append(self)

    def first_tokens(self, generation: Generation, choice: Choice, seconds: float, count: int) -> None:  # noqa: ARG002
        self._room.set()

    def ended(self, generation: Generation, outcome: str, seconds: float) -> None:  # noqa: ARG002
        self._room.set()

    async def run(self, request: GenerationRequest) -> list[Choice]:
        """All choices of a request with one choice a prompt, in order.

        Raises `QueueFull` when there is no room for the first part, `GroupUnavailable` when there is no group for one,
        `DeadlineExceeded`, and whatever ends a part: then the others are cancelled.
        """
        parts = list(self._parts(request))
        waiting, done = iter(enumerate(parts)), dict[int, Sequence[Choice]]()
        tasks = [asyncio.create_task(self._work(waiting, done)) for _ in range(min(_PARTS_AT_ONCE, len(parts)))]
        try:
            async with asyncio.timeout(request.timeout_s):
                await asyncio.gather(*tasks)
        except TimeoutError:
            raise _late(request, begun=bool(done)) from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [choice for place in range(len(parts)) for choice in done[place]]

    async def _work(self, waiting: Iterator[tuple[int, GenerationRequest]], done: dict[int, Sequence[Choice]]) -> None:
        for place, part in waiting:
            generation = await self._admitted(part) if place else self._service.generate(part)
            async with generation:
                await whole(generation)
            done[place] = generation.choices

    async def _admitted(self, part: GenerationRequest) -> Generation:
        while True:
            self._room.clear()
            try:
                return self._service.generate(part)
            except QueueFull:
                await self._room.wait()

    def _parts(self, request: GenerationRequest) -> Iterator[GenerationRequest]:
        """Requests of some of its prompts each. The deadline is that of the whole."""
        first, some = 0, list[Prompt]()
        tokens = 0
        for place, prompt in enumerate(request.prompts):
            if some and (len(some) == self._inputs or tokens + len(prompt.tokens) > self._tokens):
                yield replace(request, id=f"{request.id}-{first}", prompts=some, timeout_s=None)
                first, some, tokens = place, [], 0
            some.append(prompt)
            tokens += len(prompt.tokens)
        yield replace(request, id=f"{request.id}-{first}", prompts=some, timeout_s=None)


def _late(request: GenerationRequest, *, begun: bool) -> DeadlineExceeded:
    where, code = (
        ("before it was complete", "deadline_exceeded") if begun else ("while it was waiting", "queue_timeout")
    )
    return DeadlineExceeded(f"timeout_s of {request.timeout_s:g} s passed {where}", code=code)

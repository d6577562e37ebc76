"""JSON answers."""

import asyncio
from collections.abc import Callable, Iterable

import msgspec
from starlette.responses import Response

from serving.api.render import wants_logprobs
from serving.gateway.generation import Generation


def json_response(answer: msgspec.Struct | bytes) -> Response:
    """Status 200 with a struct, or with what is JSON already, as its body."""
    body = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)
    return Response(body, media_type="application/json")


async def made(make: Callable[[], bytes], generation: Generation) -> Response:
    """The answer of a generation at its end, made in a thread where it has log-probabilities: it may have a million."""
    return json_response(await asyncio.to_thread(make) if wants_logprobs(generation) else make())


def filled(empty: msgspec.Struct, field: str, entries: Iterable[msgspec.Struct]) -> bytes:
    """The JSON of a struct whose first list, `field`, is empty, with these entries in it.

    They are made and encoded one by one: in a thread, others can go on in between.
    """
    head, name, tail = msgspec.json.encode(empty).partition(f'"{field}":['.encode())
    return head + name + b",".join(msgspec.json.encode(entry) for entry in entries) + tail

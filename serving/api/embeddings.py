"""`/v1/embeddings`, as OpenAI's clients know it: the last hidden states of each input, pooled to one vector.

`pooling` and `normalize` are ours. Inputs are never cut off, and vectors have the model's own size. An answer may hold
thousands of vectors: it is made and sent some at a time.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serving.api import parse
from serving.api.answers import Embedding, EmbeddingList, EmbeddingUsage
from serving.api.auth import caller
from serving.api.feed import Feed
from serving.api.prepare import Preparer
from serving.api.schema import EmbeddingRequest
from serving.api.sse import until_disconnect
from serving.config import Config
from serving.gateway.generation import Choice
from serving.gateway.service import Service
from serving.messages import floats

_SENT_BYTES = 64 * 1024
"""Of an answer, at a time."""


class Embeddings:
    """The endpoint."""

    def __init__(self, service: Service, preparer: Preparer, config: Config) -> None:
        self._service = service
        self._preparer = preparer
        self._feed = Feed(service, config)
        self._http = config.http
        self._name = config.model.name

    async def embeddings(self, request: Request) -> Response:
        """A vector for each input."""
        body = await parse.read(request, EmbeddingRequest, self._http)
        self._preparer.check_model(body.model)
        self._service.check_admission()
        prepared = await self._preparer.embedding(body, caller=caller(request))
        choices = await until_disconnect(request.receive, self._feed.run(prepared))
        tokens = sum(len(prompt.tokens) for prompt in prepared.prompts)
        empty = EmbeddingList(
            data=[], model=self._name, usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
        )
        answer = _answer(empty, choices, as_base64=body.encoding_format == "base64")
        return StreamingResponse(answer, media_type="application/json")


async def _answer(empty: EmbeddingList, choices: Sequence[Choice], *, as_base64: bool) -> AsyncIterator[bytes]:
    """The JSON of an answer, piece by piece; others have their turn in between."""
    head, field, tail = msgspec.json.encode(empty).partition(b'"data":[')
    ready = bytearray(head + field)
    for place, choice in enumerate(choices):
        ready += b"," * (place > 0) + msgspec.json.encode(_embedding(place, choice, as_base64))
        if len(ready) >= _SENT_BYTES:
            yield bytes(ready)
            ready.clear()
            await asyncio.sleep(0)
    yield bytes(ready) + tail


def _embedding(place: int, choice: Choice, as_base64: bool) -> Embedding:
    assert choice.embedding is not None, "a request with pooling ends with a vector"
    vector = base64.b64encode(choice.embedding).decode() if as_base64 else floats(choice.embedding)
    return Embedding(index=place, embedding=vector)

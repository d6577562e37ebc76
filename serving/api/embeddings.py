"""`/v1/embeddings`, as OpenAI's clients know it: the last hidden states of each input, pooled to one vector.

`pooling` and `normalize` are ours. Inputs are never cut off, and vectors have the model's own size.
"""

import base64

from starlette.requests import Request
from starlette.responses import Response

from serving.api import parse
from serving.api.answers import Embedding, EmbeddingList, EmbeddingUsage
from serving.api.auth import caller
from serving.api.prepare import Preparer
from serving.api.responses import json_response
from serving.api.schema import EmbeddingRequest
from serving.api.sse import collect
from serving.config import Config
from serving.gateway.generation import Choice
from serving.gateway.service import Service
from serving.messages import floats


class Embeddings:
    """The endpoint."""

    def __init__(self, service: Service, preparer: Preparer, config: Config) -> None:
        self._service = service
        self._preparer = preparer
        self._http = config.http
        self._name = config.model.name

    async def embeddings(self, request: Request) -> Response:
        """A vector for each input."""
        body = await parse.read(request, EmbeddingRequest, self._http)
        self._preparer.check_model(body.model)
        self._service.check_admission()
        generation = self._service.generate(await self._preparer.embedding(body, caller=caller(request)))
        await collect(generation, request.receive)
        tokens = sum(len(prompt.tokens) for prompt in generation.request.prompts)
        return json_response(
            EmbeddingList(
                data=[_embedding(choice, body.encoding_format == "base64") for choice in generation.choices],
                model=self._name,
                usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
            )
        )


def _embedding(choice: Choice, as_base64: bool) -> Embedding:
    assert choice.embedding is not None, "a request with pooling ends with a vector"
    vector = base64.b64encode(choice.embedding).decode() if as_base64 else floats(choice.embedding)
    return Embedding(index=choice.index, embedding=vector)

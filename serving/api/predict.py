"""`POST /predict`: prompts and chats in, as many outputs out."""

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from serving.api import parse
from serving.api.answers import Output, PredictEvent, Prediction, Sample
from serving.api.auth import caller
from serving.api.prepare import Length, Preparer, Source
from serving.api.render import text_logprobs, usage
from serving.api.responses import filled, made
from serving.api.schema import ChatMessage, PredictParameters, PredictRequest
from serving.api.sse import EventStream, collect
from serving.config import Config
from serving.gateway.generation import Choice, Generation, Piece
from serving.gateway.service import Service

_DEFAULT_MAX_TOKENS = 128


class Predict:
    """The endpoint."""

    def __init__(self, service: Service, preparer: Preparer, config: Config) -> None:
        self._service = service
        self._preparer = preparer
        self._http = config.http
        self._model = config.model.name

    async def predict(self, request: Request) -> Response | EventStream:
        """Run all inputs, and answer with all outputs or with a stream of them."""
        body = await parse.read(request, PredictRequest, self._http)
        self._service.check_admission()
        parameters = body.parameters or PredictParameters()
        default = self._preparer.defaults.max_tokens or _DEFAULT_MAX_TOKENS
        prepared = await self._preparer.request(
            "predict",
            self._sources(body),
            parameters,
            length=Length(parameters.max_tokens, default, "parameters.max_tokens"),
            logprobs=-1 if parameters.logprobs is None else parameters.logprobs,
            stream=bool(body.stream),
            caller=caller(request),
            at="parameters.",
        )
        generation = self._service.generate(prepared)
        if body.stream:
            return EventStream(generation, lambda choice, piece: self._event(generation, choice, piece), self._http)
        pieces = await collect(generation, request.receive)
        return await made(lambda: self._answer(generation, pieces), generation)

    def _sources(self, body: PredictRequest) -> list[Source]:
        """An instruction model is trained on chats: given a bare question, it would as soon end as answer."""
        chats = self._service.tokenizer.has_chat_template and not body.raw

        def source(content: str | list[ChatMessage], param: str) -> Source:
            if chats and isinstance(content, str) and content:
                return Source([ChatMessage(role="user", content=content)], param)
            return Source(content, param)

        if isinstance(body.inputs, str):
            return [source(body.inputs, "inputs")]
        return [source(content, f"inputs.{place}") for place, content in enumerate(body.inputs)]

    def _answer(self, generation: Generation, pieces: Sequence[Piece]) -> bytes:
        n = generation.request.n
        outputs = (self._output(generation, pieces, first) for first in range(0, len(pieces), n))
        return filled(Prediction(outputs=[], id=generation.request.id, model=self._model), "outputs", outputs)

    def _output(self, generation: Generation, pieces: Sequence[Piece], first: int) -> Output:
        n, tokenizer = generation.request.n, self._service.tokenizer
        samples = [
            Sample(
                text=piece.text,
                finish_reason=piece.finish_reason,
                logprobs=text_logprobs(generation, piece, tokenizer),
            )
            for piece in pieces[first : first + n]
        ]
        return Output(
            text=samples[0].text,
            finish_reason=samples[0].finish_reason,
            logprobs=samples[0].logprobs,
            usage=usage(generation.choices[first : first + n], n),
            samples=samples if n > 1 else [],
        )

    def _event(self, generation: Generation, choice: Choice, piece: Piece) -> PredictEvent:
        n = generation.request.n
        return PredictEvent(
            index=choice.index // n,
            text=piece.text,
            finish_reason=piece.finish_reason,
            sample=choice.index % n if n > 1 else msgspec.UNSET,
            logprobs=text_logprobs(generation, piece, self._service.tokenizer) or msgspec.UNSET,
            usage=usage([choice], 1) if piece.finish_reason else msgspec.UNSET,
        )

"""`/v1/completions`, `/v1/chat/completions` and `/v1/models`, as OpenAI's clients and vLLM's benchmark know them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from serving.api import parse
from serving.api.answers import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    Completion,
    CompletionChoice,
    ModelCard,
    ModelList,
    Usage,
)
from serving.api.auth import caller
from serving.api.prepare import Length, Preparer, Source, sources
from serving.api.render import chat_logprobs, text_logprobs, usage
from serving.api.responses import filled, json_response, made
from serving.api.schema import ChatRequest, CompletionRequest, OpenAIFields
from serving.api.sse import EventStream, collect
from serving.config import Config
from serving.gateway.generation import Choice, Generation, GenerationRequest, Piece
from serving.gateway.service import Service

_DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for completions, and vLLM's whatever the model says; a chat's answer may take all that fits."""

_SoFar = Usage | msgspec.UnsetType | None
"""Of a stream, in one event."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What every event of an answer repeats."""

    id: str
    created: int
    model: str


class OpenAI:
    """The endpoints."""

    def __init__(self, service: Service, preparer: Preparer, config: Config) -> None:
        self._service = service
        self._tokenizer = service.tokenizer
        self._preparer = preparer
        self._http = config.http
        self._card = ModelCard(id=config.model.name, created=int(time.time()), max_model_len=config.model.max_model_len)

    async def models(self, _request: Request) -> Response:
        """The one model."""
        return json_response(ModelList(data=[self._card]))

    async def model(self, request: Request) -> Response:
        """The model by its name."""
        self._preparer.check_model(request.path_params["model"])
        return json_response(self._card)

    async def completions(self, request: Request) -> Response | EventStream:
        """Continue prompts."""
        body = await parse.read(request, CompletionRequest, self._http)
        self._check(body)
        prepared = await self._preparer.request(
            "cmpl",
            sources(body.prompt, "prompt"),
            body,
            length=Length(body.max_tokens, _DEFAULT_COMPLETION_TOKENS, "max_tokens"),
            logprobs=-1 if body.logprobs is None else body.logprobs,
            stream=bool(body.stream),
            caller=caller(request),
        )
        return await self._respond(request, body, prepared, self._completion_event, self._completion)

    async def chat(self, request: Request) -> Response | EventStream:
        """Answer a chat."""
        body = await parse.read(request, ChatRequest, self._http)
        self._check(body)
        prepared = await self._preparer.request(
            "chatcmpl",
            [Source(body.messages, "messages")],
            body,
            length=_chat_length(body, self._preparer.defaults.max_tokens),
            logprobs=_chat_logprobs(body),
            stream=bool(body.stream),
            caller=caller(request),
        )
        return await self._respond(request, body, prepared, self._chat_event, self._chat_completion)

    def _check(self, body: OpenAIFields) -> None:
        self._preparer.check_model(body.model)
        if body.stream_options is not None and not body.stream:
            raise parse.param_error("stream_options", "is for streams only; set stream to true")
        self._service.check_admission()

    async def _respond(
        self,
        request: Request,
        body: OpenAIFields,
        prepared: GenerationRequest,
        event: "Callable[[Generation, Stamp, Choice, Piece, _SoFar], msgspec.Struct]",
        whole: "Callable[[Generation, Stamp, Sequence[Piece]], bytes]",
    ) -> Response | EventStream:
        generation = self._service.generate(prepared)
        stamp = Stamp(prepared.id, int(time.time()), self._card.id)
        if not body.stream:
            pieces = await collect(generation, request.receive)
            return await made(lambda: whole(generation, stamp, pieces), generation)
        options = body.stream_options
        with_usage = bool(options and options.include_usage)
        running = bool(options and options.continuous_usage_stats)
        absent: _SoFar = None if with_usage else msgspec.UNSET

        def render(choice: Choice, piece: Piece) -> msgspec.Struct:
            return event(generation, stamp, choice, piece, _usage(generation) if running else absent)

        def closing() -> list[msgspec.Struct]:
            return [self._usage_event(generation, stamp, chat=isinstance(body, ChatRequest))] if with_usage else []

        return EventStream(generation, render, self._http, closing)

    # ------------------------------------------------------------ completions

    def _completion(self, generation: Generation, stamp: Stamp, pieces: Sequence[Piece]) -> bytes:
        choices = (
            self._completion_choice(generation, choice, piece)
            for choice, piece in zip(generation.choices, pieces, strict=True)
        )
        return filled(Completion(**_fields(stamp), choices=[], usage=_usage(generation)), "choices", choices)

    def _completion_event(
        self, generation: Generation, stamp: Stamp, choice: Choice, piece: Piece, so_far: _SoFar
    ) -> Completion:
        return Completion(**_fields(stamp), choices=[self._completion_choice(generation, choice, piece)], usage=so_far)

    def _completion_choice(self, generation: Generation, choice: Choice, piece: Piece) -> CompletionChoice:
        return CompletionChoice(
            index=choice.index,
            text=piece.text,
            logprobs=text_logprobs(generation, piece, self._tokenizer),
            finish_reason=piece.finish_reason,
        )

    # ------------------------------------------------------------ chat

    def _chat_completion(self, generation: Generation, stamp: Stamp, pieces: Sequence[Piece]) -> bytes:
        choices = (
            ChatChoice(
                index=index,
                message=AssistantMessage(content=piece.text),
                logprobs=chat_logprobs(generation, piece, self._tokenizer),
                finish_reason=piece.finish_reason,
            )
            for index, piece in enumerate(pieces)
        )
        return filled(ChatCompletion(**_fields(stamp), choices=[], usage=_usage(generation)), "choices", choices)

    def _chat_event(
        self, generation: Generation, stamp: Stamp, choice: Choice, piece: Piece, so_far: _SoFar
    ) -> ChatChunk:
        delta = ChatDelta(role="assistant" if piece.first else None, content=piece.text)
        chunk = ChatChunkChoice(
            index=choice.index,
            delta=delta,
            logprobs=chat_logprobs(generation, piece, self._tokenizer),
            finish_reason=piece.finish_reason,
        )
        return ChatChunk(**_fields(stamp), choices=[chunk], usage=so_far)

    def _usage_event(self, generation: Generation, stamp: Stamp, *, chat: bool) -> ChatChunk | Completion:
        kind = ChatChunk if chat else Completion
        return kind(**_fields(stamp), choices=[], usage=_usage(generation))


def _fields(stamp: Stamp) -> dict[str, Any]:
    return {"id": stamp.id, "created": stamp.created, "model": stamp.model}


def _usage(generation: Generation) -> Usage:
    return usage(generation.choices, generation.request.n)


def _chat_length(body: ChatRequest, default: int | None) -> Length:
    if body.max_completion_tokens is None:
        return Length(body.max_tokens, default, "max_tokens")
    if body.max_tokens not in {None, body.max_completion_tokens}:
        raise parse.param_error("max_completion_tokens", f"contradicts max_tokens={body.max_tokens}")
    return Length(body.max_completion_tokens, default, "max_completion_tokens")


def _chat_logprobs(body: ChatRequest) -> int:
    if body.top_logprobs and not body.logprobs:
        raise parse.param_error("top_logprobs", "needs logprobs set to true")
    return (body.top_logprobs or 0) if body.logprobs else -1

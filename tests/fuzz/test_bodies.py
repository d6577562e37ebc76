"""Request bodies: checked fields, or one sentence that fits into an answer."""

import asyncio
import json
from collections.abc import Sequence

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from serving.api import parse
from serving.api.errors import translate
from serving.api.neutral import Fields
from serving.api.schema import ChatRequest, CompletionRequest, EmbeddingRequest, PredictRequest
from serving.config import HttpConfig
from serving.errors import CallerError
from tests.fuzz.strategies import any_bytes, fuzz

HTTP = HttpConfig()
MODELS: tuple[type[Fields], ...] = (PredictRequest, CompletionRequest, ChatRequest, EmbeddingRequest)
CHAT = [{"role": "user", "content": [{"type": "text", "text": "ü"}]}, {"role": "assistant", "content": "x"}]
PARAMETERS = {"temperature": 0.5, "logit_bias": {"5": -1.5}, "stop": ["a", "b"], "stop_token_ids": [7], "seed": -1}
BODIES = any_bytes(
    [
        json.dumps(body).encode()
        for body in (
            {"inputs": ["x", CHAT], "parameters": PARAMETERS, "stream": True, "raw": None},
            {"prompt": [[1, 2], [3]], "logprobs": 5, "stream_options": {"include_usage": True}, **PARAMETERS},
            {"messages": CHAT, "response_format": {"type": "text"}, "tools": [], "metadata": {"a": "b"}},
            {"input": [1, 2], "encoding_format": "base64", "pooling": "mean"},
        )
    ]
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)),
    max_leaves=12,
)
NAMES = sorted({name for model in MODELS for name in model.model_fields} | {"role", "content", "text", "\ud800"})


def request_of(chunks: Sequence[bytes], length: str | None = None) -> Request:
    """One whose body comes so."""
    coming = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages = iter([*coming, {"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        return next(messages)

    headers = [] if length is None else [(b"content-length", length.encode("latin-1"))]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


async def read(model: type[Fields], chunks: Sequence[bytes], length: str | None = None) -> None:
    """Read a body; whatever is said of it can be sent, and is short."""
    try:
        await parse.read(request_of(chunks, length), model, HTTP)
    except CallerError as error:
        status, _, answer = translate(error)
        assert status in {400, 413}
        assert len(msgspec.json.encode(answer)) < 3000


@fuzz
@given(st.lists(BODIES, min_size=1, max_size=2))
@example([b'{"inputs":' + b"[" * 100_000])
@example([b'{"inputs":"\\ud800"}'])
@example([b'{"prompt":' + b"9" * 100_000 + b"}"])
@example([b"{" + b"x" * 0 + b'"' + b"a" * 100_000 + b'":1}'])
def test_bytes_are_fields_or_refused_in_a_sentence(chunks: list[bytes]) -> None:
    for model in MODELS:
        asyncio.run(read(model, chunks))


@fuzz
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5))
def test_known_names_with_any_values_are_fields_or_refused_in_a_sentence(body: dict[str, object]) -> None:
    data = json.dumps(body).encode()
    for model in MODELS:
        asyncio.run(read(model, [data]))


@fuzz
@given(st.text(st.characters(codec="latin-1"), max_size=12))
@example("9" * 5000)
def test_any_declared_length_is_taken_or_refused(length: str) -> None:
    asyncio.run(read(PredictRequest, [b"{}"], length))


async def test_millions_of_faults_are_one_complaint() -> None:
    """Each fault told would be half a kilobyte: gigabytes for a body within its limit."""
    for model, name in ((PredictRequest, b"inputs"), (CompletionRequest, b"prompt"), (EmbeddingRequest, b"input")):
        await read(model, [b'{"' + name + b'":[' + b"{}," * 500_000 + b"{}]}"])
    await read(ChatRequest, [b'{"messages":"x"' + b"".join(b',"a%d":1' % place for place in range(2000)) + b"}"])

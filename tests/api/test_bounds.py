"""What a body may hold is counted before anything is made of it, and what takes long is done beside the event loop."""

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serving.api import bounds, ids, parse
from serving.api.bounds import LIMITS, Counts, count
from serving.api.neutral import Fields
from serving.api.prepare import Preparer
from serving.api.responses import filled
from serving.api.schema import ChatRequest, CompletionRequest, EmbeddingRequest, PredictRequest
from serving.errors import InvalidRequest
from serving.gateway.chat_template import render_chat
from serving.gateway.tokenizer import Tokenizer
from tests.api.conftest import serving
from tests.api.test_errors import error
from tests.fake_engine import FakeGroup
from tests.fuzz.strategies import fuzz
from tests.fuzz.test_bodies import request_of
from tests.gateway.conftest import demo_tokenizer, make_config

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.text('ab"\\{}[],:é\n', max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text('a"\\,', max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


def walked(value: object) -> Counts:
    """The same by looking at every value."""
    if isinstance(value, dict):
        inner = [walked(one) for one in value.values()]
        own = Counts(objects=1, strings=len(value), commas=max(0, len(value) - 1))
    elif isinstance(value, list):
        inner = [walked(one) for one in value]
        own = Counts(lists=1, commas=max(0, len(value) - 1))
    else:
        return Counts(strings=int(isinstance(value, str)))
    for one in inner:
        own.objects += one.objects
        own.lists += one.lists
        own.strings += one.strings
        own.commas += one.commas
    return own


@fuzz
@given(VALUES, st.integers(1, 9))
def test_what_is_counted_is_what_there_is_wherever_the_slices_end(value: object, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "SLICE_BYTES", size)
        assert count(json.dumps(value).encode()) == walked(value)
        assert count(json.dumps(value, ensure_ascii=False).encode()) == walked(value)


def chat(content: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content}]}).encode()


def spied(model: type[Fields]) -> tuple[type[Fields], list[int]]:
    """A model, and in which thread each of its bodies was checked."""
    threads: list[int] = []

    class Spied(model):  # type: ignore[misc, valid-type]
        @classmethod
        def model_validate_json(cls, *args: Any, **kwargs: Any) -> Any:
            threads.append(threading.get_ident())
            return super().model_validate_json(*args, **kwargs)

    return Spied, threads


async def read(model: type[Fields], body: bytes) -> Fields:
    return await parse.read(request_of([body]), model, make_config().http)


TOO_MUCH: dict[str, tuple[type[Fields], bytes]] = {
    "parts": (ChatRequest, chat([{"type": "text", "text": ""}] * (LIMITS.objects + 1))),
    "empty parts": (ChatRequest, chat([{}] * 1_000_000)),
    "messages": (ChatRequest, b'{"messages":[' + b"{}," * 1_000_000 + b"{}]}"),
    "chats": (PredictRequest, b'{"inputs":[' + b"[{}]," * 500_000 + b"[]]}"),
    "texts": (CompletionRequest, b'{"prompt":[' + b'"",' * 1_000_000 + b'""]}'),
    "lists of ids": (CompletionRequest, b'{"prompt":[' + b"[7]," * 500_000 + b"[7]]}"),
    "inputs": (EmbeddingRequest, b'{"input":[' + b"[7]," * 500_000 + b"[7]]}"),
    "stop token ids": (CompletionRequest, b'{"prompt":"x","stop_token_ids":[' + b"7," * 500_000 + b"7]}"),
    "ids twice": (CompletionRequest, b'{"prompt":[' + b"7," * 500_000 + b'7],"prompt":[7]}'),
    "keys": (ChatRequest, json.dumps(dict.fromkeys(map(str, range(100_000)))).encode()),
    "digits": (CompletionRequest, b'{"prompt":[' + b"9" * 4300 + b"]}" + b" " * 20_000),
    "depth": (ChatRequest, b'{"messages":' + b"[" * 1_000_000),
}


@pytest.mark.parametrize("name", TOO_MUCH)
async def test_a_body_that_holds_too_much_is_refused_before_it_is_looked_at(name: str) -> None:
    model, body = TOO_MUCH[name]
    watched, threads = spied(model)
    with pytest.raises(InvalidRequest):
        await read(watched, body)
    assert threads == []


async def test_a_body_at_the_limits_is_taken() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}]}] * 4096
    assert len((await read(ChatRequest, json.dumps({"messages": messages}).encode())).messages) == 4096  # type: ignore[attr-defined]
    texts = [f"a, {place}" for place in range(2048)]
    assert (await read(EmbeddingRequest, json.dumps({"input": texts}).encode())).input == texts  # type: ignore[attr-defined]
    text = 'a, "b", {[' * 200_000
    assert (await read(CompletionRequest, json.dumps({"prompt": text}).encode())).prompt == text  # type: ignore[attr-defined]


async def test_a_long_body_is_checked_in_another_thread_and_a_short_one_in_this() -> None:
    watched, threads = spied(CompletionRequest)
    await read(watched, b'{"prompt":"x"}')
    await read(watched, b'{"prompt":"' + b"x" * 20_000 + b'"}')
    assert threads[0] == threading.get_ident() != threads[1]


def test_a_wrong_part_is_one_complaint_however_many_there_are() -> None:
    for body in (chat([{}] * 9000), chat([5] * 9000), chat([{"type": "image_url"}] * 9000)):
        with pytest.raises(ValidationError) as caught:
            ChatRequest.model_validate_json(body)
        assert caught.value.error_count() < 10


# ---------------------------------------------------------------- token ids


@pytest.mark.parametrize(
    "prompt", [list(range(500_000)), [[place] * 3000 for place in range(64)], [list(range(50_000))]]
)
async def test_very_many_ids_are_read_as_they_are(prompt: Any) -> None:
    body = json.dumps({"max_tokens": 3, "prompt": prompt, "stop_token_ids": [1]}).encode()
    small, taken = ids.take_out(body)
    assert len(small) < 200
    assert taken == {"prompt": prompt}
    checked: Any = await read(CompletionRequest, body)
    assert (checked.prompt, checked.max_tokens, checked.stop_token_ids) == (prompt, 3, [1])


@pytest.mark.parametrize("wrong", [-1, 2**31, 1.5, True, None, [1], "x", {}])
async def test_one_wrong_id_among_very_many_is_refused(client: httpx.AsyncClient, wrong: Any) -> None:
    body = {"prompt": [*range(50_000), wrong, *range(50_000)]}
    assert error(await client.post("/v1/completions", json=body), 400)["param"].startswith("prompt")


async def test_more_ids_than_fit_are_counted_and_not_looked_at(client: httpx.AsyncClient) -> None:
    body = b'{"prompt":[' + b"7," * 2_000_000 + b"7]}"
    told = error(await client.post("/v1/completions", content=body), 400)
    assert (told["param"], told["code"]) == ("prompt", "context_length_exceeded")
    assert "2000001 tokens" in told["message"]


# ---------------------------------------------------------------- templates and texts


async def test_a_chat_that_cannot_fit_is_never_rendered(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[int] = []

    def render(*args: Any) -> str:
        rendered.append(threading.get_ident())
        return render_chat(*args)

    monkeypatch.setattr("serving.gateway.tokenizer.render_chat", render)
    for messages in ([{"role": "user", "content": "x" * 70_000}], [{"role": "user", "content": "x" * 1000}] * 70):
        told = error(await client.post("/v1/chat/completions", json={"messages": messages}), 400)
        assert told["code"] == "context_length_exceeded"
    assert rendered == []
    for messages in ([{"role": "user", "content": "x"}], [{"role": "user", "content": "x"}] * 100):
        body = {"messages": messages, "max_tokens": 1}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert rendered[0] == threading.get_ident() != rendered[1]


async def test_of_a_text_that_cannot_fit_no_more_is_encoded_than_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(make_config("model.max_model_len=30000").model)
    seen: list[int] = []
    real = tokenizer._encode

    def encode(text: str, special: bool) -> list[int]:
        seen.append(len(text))
        return real(text, special)

    monkeypatch.setattr(tokenizer, "_encode", encode)
    with pytest.raises(InvalidRequest, match="more than the 30000 tokens"):
        await tokenizer.encode("é" * 900_000, param="prompt")
    assert sum(seen) <= 200_000
    text = "internationally " * 10_000
    assert await tokenizer.encode(text, param="prompt") == real(text, True)


async def test_others_have_their_turn_between_texts() -> None:
    preparer, turns = Preparer(make_config(), demo_tokenizer()), 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    await preparer.embedding(EmbeddingRequest(input=["x"] * 500), caller="")
    counting.cancel()
    assert turns >= 500


async def test_a_deadline_passes_also_while_a_text_waits_to_be_encoded(group: FakeGroup) -> None:
    async with serving(group, make_config()) as (client, service):
        over = threading.Event()
        service.tokenizer._thread.submit(over.wait)
        for path, field in (("/v1/completions", "prompt"), ("/v1/embeddings", "input")):
            response = await client.post(path, json={field: "a word " * 1000, "timeout_s": 0.05})
            assert error(response, 408)["code"] == "queue_timeout"
        over.set()


async def test_an_answer_with_logprobs_is_made_in_another_thread(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()

    def seen(*args: Any) -> bytes:
        threads.add(threading.get_ident())
        return filled(*args)

    for module in ("openai", "predict"):
        monkeypatch.setattr(f"serving.api.{module}.filled", seen)
    chat: list[dict[str, str]] = [{"role": "user", "content": "x"}]
    for path, body in {
        "/predict": {"inputs": "x", "parameters": {"max_tokens": 2, "logprobs": 1}},
        "/v1/completions": {"prompt": "x", "max_tokens": 2, "logprobs": 1},
        "/v1/chat/completions": {"messages": chat, "max_tokens": 2, "logprobs": True},
    }.items():
        assert (await client.post(path, json=body)).status_code == 200
    assert threads
    assert threading.get_ident() not in threads

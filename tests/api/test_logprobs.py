"""Tokens beside their log-probabilities: joined they are the text, byte for byte and character for character."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from serving.gateway.tokenizer import Tokenizer
from tests.api.conftest import serving
from tests.fake_engine import FakeGroup, until
from tests.gateway.conftest import make_config, tiny_tokenizer
from tests.gateway.tiny_tokenizers import KINDS

TEXT = " world, é日 the 👧 tree"
"""What is answered to "Hello"; most of it is raw bytes."""


@pytest.fixture(params=KINDS)
def tiny(request: pytest.FixtureRequest) -> Tokenizer:
    return tiny_tokenizer(request.param)


def script(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The prompt's ids and the answer's, an end token behind them."""
    ids = tokenizer._encode("Hello" + TEXT, special=False)
    cut = next(at for at in range(len(ids)) if tokenizer.decode(ids[:at]) == "Hello")
    return ids[:cut], [*ids[cut:], tokenizer._hf.eos_token_id]


async def ask(group: FakeGroup, tokenizer: Tokenizer, path: str, body: dict[str, Any]) -> Any:
    async with serving(group, make_config(), tokenizer) as (client, _):
        answer = await client.post(path, json=body)
    assert answer.status_code == httpx.codes.OK, answer.text
    return answer.json()["choices"][0]


async def test_completions_show_tokens_that_are_the_text(tiny: Tokenizer, group: FakeGroup) -> None:
    prompt, group.behaviour.script = script(tiny)
    body = {"prompt": prompt, "max_tokens": 100, "logprobs": 1, "stop_token_ids": [group.behaviour.script[-1]]}
    choice = await ask(group, tiny, "/v1/completions", body)
    assert choice["text"] == TEXT
    tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
    raw = [unescaped(token) for token in tokens]
    assert b"".join(raw).decode() == TEXT
    assert "bytes:\\xc3" in tokens
    assert "\ufffd" not in "".join(tokens)
    for place, offset in enumerate(offsets):
        assert offset == len(b"".join(raw[:place]).decode(errors="ignore"))
    assert all(token in top for token, top in zip(tokens, choice["logprobs"]["top_logprobs"], strict=True))


def unescaped(token: str) -> bytes:
    """As clients of OpenAI's read its completions' tokens."""
    if not token.startswith("bytes:"):
        return token.encode()
    return token.removeprefix("bytes:").encode("ascii").decode("unicode_escape").encode("latin-1")


async def test_chats_show_the_bytes_of_each_token(tiny: Tokenizer, group: FakeGroup) -> None:
    tiny._hf.chat_template = "{{ messages[0].content }}"
    _, group.behaviour.script = script(tiny)
    body = {
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 100,
        "logprobs": True,
        "top_logprobs": 1,
        "stop_token_ids": [group.behaviour.script[-1]],
    }  # fmt: skip
    choice = await ask(group, tiny, "/v1/chat/completions", body)
    assert choice["message"]["content"] == TEXT
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in content).decode() == TEXT
    accent = next(one for one in content if one["bytes"] == [195])
    assert accent["token"] == "\\xc3"
    assert accent["top_logprobs"][0]["bytes"] == [195]


@pytest.mark.parametrize("kind", ["llama", "unigram"])
async def test_the_first_word_behind_nothing_is_shown_as_it_stands_in_the_text(kind: str, group: FakeGroup) -> None:
    tiny = tiny_tokenizer(kind)
    start = tiny._hf.convert_tokens_to_ids("<s>")
    ids = tiny._encode("Hello world", special=False)
    group.behaviour.script = [*ids, tiny._hf.eos_token_id]
    body = {"prompt": [start], "max_tokens": 100, "logprobs": 0, "stop_token_ids": [tiny._hf.eos_token_id]}
    choice = await ask(group, tiny, "/v1/completions", body)
    assert choice["text"] == "".join(choice["logprobs"]["tokens"]) == "Hello world"


async def test_a_special_token_is_shown_by_name_and_has_no_bytes(tiny: Tokenizer, group: FakeGroup) -> None:
    tiny._hf.chat_template = "{{ messages[0].content }}"
    end = tiny._hf.convert_tokens_to_ids("<|end|>")
    group.behaviour.script = [end]
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "logprobs": True}
    choice = await ask(group, tiny, "/v1/chat/completions", body)
    assert choice["message"]["content"] == ""
    assert [(one["token"], one["bytes"]) for one in choice["logprobs"]["content"]] == [("<|end|>", [])]


async def test_a_stream_that_is_resumed_in_a_character_loses_neither_space_nor_byte(
    tiny: Tokenizer, group: FakeGroup
) -> None:
    prompt, answer = script(tiny)
    begun = next(place for place, token in enumerate(answer, 1) if tiny.token_bytes(token) == b"\xc3")
    group.behaviour.script, group.behaviour.max_emitted = answer, begun
    body = {"prompt": prompt, "max_tokens": 100, "logprobs": 0, "stream": True, "stop_token_ids": answer[-1:]}
    async with serving(group, make_config(), tiny) as (client, service):
        asked = asyncio.create_task(client.post("/v1/completions", json=body))
        await until(lambda: [len(one.emitted) for one in service.journal.entries] == [begun])
        group.kill()
        await until(lambda: not service.ready)
        group.behaviour.max_emitted = 100
        group.start()
        lines = (await asked).text.split("\n\n")
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines if line.startswith("data: {")]
    assert "".join(choice["text"] for choice in choices) == TEXT
    tokens = [token for choice in choices for token in choice["logprobs"]["tokens"]]
    assert b"".join(unescaped(token) for token in tokens).decode() == TEXT

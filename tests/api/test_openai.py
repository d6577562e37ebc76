"""The official client against the server, over real HTTP."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.api.conftest import Server
from tests.api.test_predict import events
from tests.fake_engine import Behaviour, answer, until
from tests.gateway.conftest import demo_tokenizer


@pytest.fixture
def api(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def behaviour(server: Server) -> Iterator[Behaviour]:
    """The engine's, put back afterwards."""
    own = server.group.behaviour
    before = dict(vars(own))
    yield own
    vars(own).update(before)


def expected(prompt: list[int], count: int, seed: int = 5) -> str:
    return demo_tokenizer().decode(answer(seed, prompt, count))


CHAT: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def test_models_are_listed(api: openai.OpenAI) -> None:
    [model] = api.models.list().data
    assert model.id == "demo"
    assert api.models.retrieve("demo").owned_by == "gangway"
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("other")


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2, 3], [4, 5]]])
def test_completions_take_token_ids(api: openai.OpenAI, prompt: Any) -> None:
    completion = api.completions.create(model="demo", prompt=prompt, max_tokens=4, seed=5)
    prompts = [prompt] if isinstance(prompt[0], int) else prompt
    assert [choice.text for choice in completion.choices] == [expected(one, 4) for one in prompts]
    assert [choice.index for choice in completion.choices] == list(range(len(prompts)))
    usage = completion.usage
    assert usage is not None
    assert usage.prompt_tokens == sum(len(one) for one in prompts)
    assert usage.completion_tokens == 4 * len(prompts)


def test_completions_take_texts_and_default_to_16_tokens(api: openai.OpenAI) -> None:
    completion = api.completions.create(model="demo", prompt=["one", "two"], n=2)
    assert len(completion.choices) == 4
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 4 * 16


def test_completion_logprobs_have_one_entry_a_token(api: openai.OpenAI) -> None:
    completion = api.completions.create(model="demo", prompt=[1, 2, 3], max_tokens=4, seed=5, logprobs=2)
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.top_logprobs is not None
    assert "".join(logprobs.tokens) == completion.choices[0].text
    assert logprobs.token_logprobs == [-0.5] * 4
    assert [len(one) for one in logprobs.top_logprobs] == [2] * 4
    assert logprobs.text_offset == [len("".join(logprobs.tokens[:place])) for place in range(4)]


def test_a_completion_streams(api: openai.OpenAI) -> None:
    stream = api.completions.create(
        model="demo",
        prompt=[1, 2, 3],
        max_tokens=6,
        seed=5,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True, "min_tokens": 2, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.0},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected([1, 2, 3], 6)
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 9


def test_a_chat_is_answered(api: openai.OpenAI, behaviour: Behaviour) -> None:
    behaviour.script = [*asyncio.run(demo_tokenizer().encode("Hello!", param="x")), 2]
    behaviour.cached_tokens = 16
    chat = api.chat.completions.create(model="demo", messages=CHAT, logprobs=True, top_logprobs=2, user="me")
    [choice] = chat.choices
    assert choice.message.content == "Hello!"
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert bytes(b for one in choice.logprobs.content for b in one.bytes or []) == b"Hello!"
    assert [len(one.top_logprobs) for one in choice.logprobs.content] == [2, 2]
    assert chat.usage is not None
    assert chat.usage.prompt_tokens_details is not None
    assert chat.usage.prompt_tokens_details.cached_tokens == 16


def test_a_chat_streams_with_its_role_first(api: openai.OpenAI) -> None:
    stream = api.chat.completions.create(model="demo", messages=CHAT, max_completion_tokens=5, n=2, stream=True)
    chunks = list(stream)
    for index in (0, 1):
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices[0].index == index]
        assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
        assert "".join(delta.content or "" for delta in deltas)
    assert all(chunk.usage is None for chunk in chunks)


def test_a_chat_without_max_tokens_may_take_all_that_fits(api: openai.OpenAI, behaviour: Behaviour) -> None:
    behaviour.tokens_per_step = 5000
    chat = api.chat.completions.create(model="demo", messages=CHAT)
    assert chat.usage is not None
    assert chat.usage.total_tokens == 2048


def test_the_fields_of_features_not_built_are_taken_in_their_neutral_value_only(api: openai.OpenAI) -> None:
    neutral: dict[str, Any] = {
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "none",
        "modalities": ["text"],
        "store": False,
        "audio": None,
    }
    create: Any = api.chat.completions.create
    create(model="demo", messages=CHAT, max_tokens=1, extra_body=neutral)
    for field, value in {
        "response_format": {"type": "json_object"},
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "store": True,
        "audio": {"voice": "x", "format": "wav"},
    }.items():
        with pytest.raises(openai.BadRequestError) as caught:
            create(model="demo", messages=CHAT, max_tokens=1, extra_body={field: value})
        assert caught.value.param is not None
        assert caught.value.param.startswith(field)


def test_echo_best_of_and_suffix_are_refused_unless_neutral(api: openai.OpenAI) -> None:
    api.completions.create(model="demo", prompt="x", max_tokens=1, echo=False, best_of=1, suffix=None)
    create: Any = api.completions.create
    for extra in ({"echo": True}, {"best_of": 2}, {"suffix": "end"}):
        with pytest.raises(openai.BadRequestError) as caught:
            create(model="demo", prompt="x", max_tokens=1, **extra)
        assert caught.value.param == next(iter(extra))


def test_errors_are_the_clients_own_types(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        api.completions.create(model="other", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        api.completions.create(model="demo", prompt="x", max_tokens=5000)
    assert wrong.value.param == "max_tokens"
    assert "5001" in wrong.value.message
    assert "2048" in wrong.value.message


async def test_a_chunk_has_usage_only_if_asked_for_and_null_in_all_but_the_last(client: httpx.AsyncClient) -> None:
    for path, body in (("/v1/completions", {"prompt": [1, 2]}), ("/v1/chat/completions", {"messages": CHAT})):
        asked: dict[str, Any] = body | {"max_tokens": 3, "stream": True}
        silent = events((await client.post(path, json=asked)).text)
        assert not any("usage" in event for event in silent)
        told = events((await client.post(path, json=asked | {"stream_options": {"include_usage": True}})).text)
        assert [event["usage"] for event in told[:-1]] == [None] * (len(told) - 1)
        assert told[-1]["usage"]["completion_tokens"] == 3


async def test_the_async_client_streams_over_a_restart(server: Server, behaviour: Behaviour) -> None:
    group = server.group
    behaviour.max_emitted = 4
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(model="demo", prompt=[7, 7], max_tokens=12, seed=5, stream=True)
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].text
            if behaviour.max_emitted == 4:
                await until(lambda: any(len(entry.emitted) == 4 for entry in server.service.journal.entries))
                group.kill()
                behaviour.max_emitted = 100
                group.start()
    assert text == expected([7, 7], 12)


async def test_a_client_that_goes_away_cancels_its_request(server: Server, behaviour: Behaviour) -> None:
    behaviour.max_emitted = 3
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(model="demo", prompt=[7, 7], max_tokens=12, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await until(lambda: len(server.service.journal) == 0)

        waiting = asyncio.create_task(client.completions.create(model="demo", prompt=[7, 7], max_tokens=12))
        await until(lambda: len(server.service.journal) == 1)
        waiting.cancel()
        await until(lambda: len(server.service.journal) == 0)
    engine = server.group.engine
    assert engine is not None
    await until(lambda: engine.running == {})

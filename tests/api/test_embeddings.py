"""`/v1/embeddings` over the fake engine: OpenAI's client, both encodings, errors, a restart under way."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from tests.api.conftest import Server, serving
from tests.fake_engine import FakeGroup, until, vector_of
from tests.gateway.conftest import demo_tokenizer, make_config

URL = "/v1/embeddings"


@pytest.mark.parametrize("form", ["float", "base64", None])
def test_openais_client_takes_the_vectors(server: Server, form: Any) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        asked = {} if form is None else {"encoding_format": form}
        found = client.embeddings.create(model="demo", input=[[1, 2, 3], [4]], user="someone", **asked)
    assert found.model == "demo"
    assert [one.index for one in found.data] == [0, 1]
    assert found.usage.model_dump() == {"prompt_tokens": 4, "total_tokens": 4}
    if form != "base64":  # asked for by name, it is left to the caller to decode
        assert [one.embedding for one in found.data] == [vector_of([1, 2, 3], "mean"), vector_of([4], "mean")]


async def test_every_shape_of_input_and_pooling(client: httpx.AsyncClient) -> None:
    tokenizer = demo_tokenizer()
    one, two = await tokenizer.encode("one", param="x"), await tokenizer.encode("two words", param="x")
    shapes: list[tuple[Any, list[list[int]]]] = [
        ("one", [one]),
        (["one", "two words"], [one, two]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ]
    for given, prompts in shapes:
        for how in ("mean", "last", "first"):
            answer = await client.post(URL, json={"input": given, "pooling": how})
            assert [entry["embedding"] for entry in answer.json()["data"]] == [vector_of(ids, how) for ids in prompts]


async def test_the_engine_is_asked_for_what_the_client_asked(client: httpx.AsyncClient, group: FakeGroup) -> None:
    await client.post(URL, json={"input": [5], "pooling": "last", "normalize": True, "priority": 3})
    assert group.engine is not None
    [submitted] = group.engine.submitted
    assert submitted.pooling is not None
    assert (submitted.pooling.how, submitted.pooling.normalize, submitted.priority) == ("last", True, 3)


async def test_an_input_may_fill_the_context(group: FakeGroup) -> None:
    async with serving(group, make_config("model.max_model_len=8")) as (client, _):
        assert (await client.post(URL, json={"input": [5] * 8})).status_code == 200
        over = await client.post(URL, json={"input": [[1], [5] * 9]})
    assert over.status_code == 400
    error = over.json()["error"]
    assert (error["param"], error["code"]) == ("input.1", "context_length_exceeded")
    assert error["message"] == "input.1: the input has 9 tokens; this model's context holds 8"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x", ""]}, "input.1"),
        ({"input": [[]]}, "input.0"),
        ({"input": [1, "x"]}, "input"),
        ({"input": [49152]}, "input"),
        ({"input": "x", "pooling": "max"}, "pooling"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "dimensions": 8}, "dimensions"),
        ({"input": "x", "temperature": 1}, "temperature"),
    ],
)
async def test_what_is_wrong_is_named(client: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    answer = await client.post(URL, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json={"input": "x", "model": "other"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_vector_under_way_when_the_group_dies_is_computed_by_the_next(group: FakeGroup) -> None:
    group.behaviour.max_emitted = 0
    async with serving(group, make_config()) as (client, service):
        asking = asyncio.create_task(client.post(URL, json={"input": [[1, 2], [3]]}))
        first = group.engine
        assert first is not None
        await until(lambda: len(first.submitted) == 2)
        group.kill()
        group.behaviour.max_emitted = 10**9
        group.start()
        answer = await asking
        assert [one["embedding"] for one in answer.json()["data"]] == [
            vector_of([1, 2], "mean"),
            vector_of([3], "mean"),
        ]
        assert len(service.journal) == 0

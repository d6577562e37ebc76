"""`/v1/embeddings` over the fake engine: OpenAI's client, both encodings, errors, a restart under way."""

import asyncio
import base64
from typing import Any

import httpx
import openai
import pytest

from serving.gateway.generation import Choice, Generation
from serving.gateway.service import Observer, Service
from serving.messages import floats
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


# ---------------------------------------------------------------- more inputs than there are places


class Most(Observer):
    """The most entries that there were at a time."""

    def __init__(self, service: Service) -> None:
        self.most = 0
        self._service = service
        service.observers.append(self)

    def submitted(self, generation: Generation, choice: Choice) -> None:
        self.most = max(self.most, len(self._service.journal))


MANY = [[place % 1000 + 1, place // 1000 + 1] for place in range(2048)]
"""Inputs that all differ."""


@pytest.mark.parametrize("form", ["float", "base64"])
async def test_2048_inputs_are_answered_in_order_and_never_take_more_than_half_of_the_queue(
    group: FakeGroup, form: str
) -> None:
    async with serving(group, make_config()) as (client, service):
        most = Most(service)
        answer = await client.post(URL, json={"input": MANY, "encoding_format": form}, timeout=60)
        assert len(service.journal) == 0
    assert answer.status_code == 200
    found = answer.json()
    assert [one["index"] for one in found["data"]] == list(range(2048))
    packed = [base64.b64decode(one["embedding"]) if form == "base64" else one["embedding"] for one in found["data"]]
    assert [floats(one) if form == "base64" else one for one in packed] == [vector_of(ids, "mean") for ids in MANY]
    assert found["usage"] == {"prompt_tokens": 4096, "total_tokens": 4096}
    assert 1 < most.most <= 4  # of 4 that run and 4 that wait


async def test_one_input_more_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json={"input": [*MANY, [1]]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "input: 2049 inputs are over this server's limit of 2048"


async def test_others_find_room_beside_a_request_of_many_inputs(group: FakeGroup) -> None:
    group.behaviour.max_emitted = 0
    async with serving(group, make_config()) as (client, service):
        many = asyncio.create_task(client.post(URL, json={"input": MANY[:20]}, timeout=60))
        await until(lambda: len(service.journal) == 4)
        others = [asyncio.create_task(client.post("/v1/completions", json={"prompt": [7]})) for _ in range(4)]
        await until(lambda: len(service.journal) == 8)
        refused = await client.post("/v1/completions", json={"prompt": [7]})
        group.behaviour.max_emitted = 10**9
        assert [(await one).status_code for one in others] == [200] * 4
        assert (await many).status_code == 200
        assert refused.status_code == 429


async def test_a_full_queue_is_429_at_first_and_waited_for_later(group: FakeGroup) -> None:
    group.behaviour.max_emitted = 0
    async with serving(group, make_config()) as (client, service):
        others = [asyncio.create_task(client.post(URL, json={"input": [[7], [8]]})) for _ in range(4)]
        await until(lambda: len(service.journal) == 8)
        assert (await client.post(URL, json={"input": MANY[:20]})).status_code == 429
        others.pop().cancel()
        await until(lambda: len(service.journal) == 6)
        many = asyncio.create_task(client.post(URL, json={"input": MANY[:20]}, timeout=60))
        await until(lambda: len(service.journal) == 8)  # its first part is in, the next one finds no room
        group.behaviour.max_emitted = 10**9
        assert len((await many).json()["data"]) == 20
        assert [(await one).status_code for one in others] == [200] * 3


async def test_a_part_takes_no_more_than_its_share_of_the_tokens_that_may_wait(group: FakeGroup) -> None:
    group.behaviour.max_emitted = 0
    async with serving(group, make_config("http.max_waiting_tokens=40", "engine.max_running=16")) as (client, service):
        many = asyncio.create_task(client.post(URL, json={"input": [[5] * 8] * 12}, timeout=60))
        await until(lambda: service.journal.waiting_tokens == 16)  # two parts of one input each
        group.behaviour.max_emitted = 10**9
        assert len((await many).json()["data"]) == 12


async def test_a_client_that_goes_away_leaves_nothing_of_its_many_inputs(group: FakeGroup) -> None:
    group.behaviour.max_emitted = 0
    async with serving(group, make_config()) as (client, service):
        many = asyncio.create_task(client.post(URL, json={"input": MANY}))
        await until(lambda: len(service.journal) == 4)
        many.cancel()
        await until(lambda: len(service.journal) == 0)
        engine = group.engine
        assert engine is not None
        await until(lambda: len(engine.cancelled) == 4)
        assert len(engine.submitted) == 4


async def test_what_ends_one_input_ends_all(group: FakeGroup) -> None:
    group.behaviour.max_emitted = 0
    async with serving(group, make_config()) as (client, service):
        many = asyncio.create_task(client.post(URL, json={"input": MANY}))
        await until(lambda: len(service.journal) == 4)
        group.behaviour.refuse = "one of them is too long"
        answer = await many
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "one of them is too long")
        assert len(service.journal) == 0


async def test_many_inputs_have_one_deadline(group: FakeGroup) -> None:
    group.behaviour.max_emitted = 0
    async with serving(group, make_config()) as (client, service):
        answer = await client.post(URL, json={"input": MANY, "timeout_s": 0.2})
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "queue_timeout")
        assert answer.json()["error"]["message"] == "timeout_s of 0.2 s passed while it was waiting"
        assert len(service.journal) == 0

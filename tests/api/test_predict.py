"""`POST /predict`."""

import json
from typing import Any

import httpx
import pytest

from tests.api.conftest import Server
from tests.fake_engine import FakeGroup, answer
from tests.gateway.conftest import demo_tokenizer


def text_of(seed: int, prompt: list[int], count: int) -> str:
    return demo_tokenizer().decode(answer(seed, prompt, count))


async def prompt_ids(text: str) -> list[int]:
    """A prompt to the demo model, which has a chat template: a user's message."""
    return await demo_tokenizer().encode_chat([{"role": "user", "content": text}], param="inputs")


async def test_a_raw_prompt_is_gone_on_with_as_it_stands(client: httpx.AsyncClient) -> None:
    body = {"inputs": "one two", "raw": True, "parameters": {"max_tokens": 4, "seed": 1}}
    response = await client.post("/predict", json=body)
    bare = await demo_tokenizer().encode("one two", param="inputs")
    assert len(bare) == 2
    assert response.json()["outputs"][0]["usage"]["prompt_tokens"] == 2
    assert response.json()["outputs"][0]["text"] == text_of(1, bare, 4)


def events(body: str) -> list[Any]:
    """The data of a stream's events, the closing [DONE] left out."""
    data = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


async def test_a_prompt_gives_one_output(client: httpx.AsyncClient) -> None:
    body = {"inputs": "Hello there", "parameters": {"max_tokens": 5, "seed": 3, "temperature": 1}}
    response = await client.post("/predict", json=body)
    prompt = await prompt_ids("Hello there")
    assert response.status_code == 200
    assert response.json()["model"] == "demo"
    assert response.json()["outputs"] == [
        {
            "text": text_of(3, prompt, 5),
            "finish_reason": "length",
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": 5,
                "total_tokens": len(prompt) + 5,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        }
    ]


async def test_a_list_gives_as_many_outputs_in_order(client: httpx.AsyncClient) -> None:
    inputs = ["one", [{"role": "user", "content": "two"}], "three"]
    response = await client.post("/predict", json={"inputs": inputs, "parameters": {"max_tokens": 4, "seed": 1}})
    outputs = response.json()["outputs"]
    assert len(outputs) == 3
    assert outputs[0]["text"] == text_of(1, await prompt_ids("one"), 4)
    assert outputs[1]["usage"]["prompt_tokens"] > 10
    assert outputs[2]["text"] == text_of(1, await prompt_ids("three"), 4)


async def test_n_gives_samples_and_still_one_output_per_input(client: httpx.AsyncClient) -> None:
    parameters = {"max_tokens": 4, "seed": 1, "n": 3, "logprobs": 1}
    response = await client.post("/predict", json={"inputs": ["one", "two"], "parameters": parameters})
    outputs = response.json()["outputs"]
    assert len(outputs) == 2
    assert [len({sample["text"] for sample in output["samples"]}) for output in outputs] == [3, 3]
    assert outputs[0]["samples"][0]["text"] == outputs[0]["text"]
    assert outputs[0]["usage"]["completion_tokens"] == 12
    assert outputs[0]["logprobs"]["token_logprobs"] == [-0.5] * 4


async def test_a_stream_joins_to_the_same_text(client: httpx.AsyncClient) -> None:
    body = {"inputs": ["one", "two"], "parameters": {"max_tokens": 6, "seed": 1}, "stream": True}
    response = await client.post("/predict", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    got = events(response.text)
    for index, text in enumerate(("one", "two")):
        mine = [event for event in got if event["index"] == index]
        assert "".join(event["text"] for event in mine) == text_of(1, await prompt_ids(text), 6)
        assert [event["finish_reason"] for event in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == "length"
        assert mine[-1]["usage"]["completion_tokens"] == 6


async def test_tokens_that_come_together_are_one_event(client: httpx.AsyncClient, group: FakeGroup) -> None:
    group.behaviour.tokens_per_step = 100
    body = {"inputs": "one", "parameters": {"max_tokens": 50, "n": 2, "seed": 1}, "stream": True}
    got = events((await client.post("/predict", json=body)).text)
    assert [event["sample"] for event in got] == [0, 1]


async def test_without_max_tokens_an_answer_has_128_or_what_fits(client: httpx.AsyncClient) -> None:
    response = await client.post("/predict", json={"inputs": ["x", "tree " * 1990]})
    counts = [output["usage"]["completion_tokens"] for output in response.json()["outputs"]]
    prompt = response.json()["outputs"][1]["usage"]["prompt_tokens"]
    assert counts == [128, 2048 - prompt]


async def test_all_parameters_reach_the_engine(client: httpx.AsyncClient, group: FakeGroup) -> None:
    parameters = {
        "max_tokens": 3,
        "min_tokens": 2,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "presence_penalty": -1,
        "frequency_penalty": 0.5,
        "logit_bias": {"11": -100, "12": 1.5},
        "seed": 2**63 - 1,
        "stop": ["never"],
        "stop_token_ids": [9],
        "ignore_eos": True,
        "logprobs": 2,
        "n": 1,
        "timeout_s": 30,
        "priority": -2,
    }
    response = await client.post("/predict", json={"inputs": "x", "parameters": parameters})
    assert response.status_code == 200, response.text
    engine = group.engine
    assert engine is not None
    [submit] = engine.submitted
    sampling = submit.sampling
    assert submit.priority == -2
    assert sampling.logit_bias == {11: -100, 12: 1.5}
    assert sampling.stop_token_ids == (9,)
    shared = parameters.keys() - {"logit_bias", "stop_token_ids", "stop", "n", "timeout_s", "priority"}
    assert {name: getattr(sampling, name) for name in shared} == {name: parameters[name] for name in shared}


async def test_null_is_the_same_as_absent(client: httpx.AsyncClient, group: FakeGroup) -> None:
    names = ("max_tokens", "temperature", "top_k", "seed", "stop", "logit_bias", "stop_token_ids", "n", "timeout_s")
    body = {"inputs": "x", "parameters": dict.fromkeys(names), "stream": None}
    assert (await client.post("/predict", json=body)).status_code == 200
    assert (await client.post("/predict", json={"inputs": "x", "parameters": None})).status_code == 200


def test_a_body_without_a_json_content_type_is_taken(server: Server) -> None:
    content = b'{"inputs": "The capital of France is", "parameters": {"max_tokens": 2}}'
    headers = {"content-type": "application/x-www-form-urlencoded"}
    response = httpx.post(f"{server.url}/predict", content=content, headers=headers)
    assert len(response.json()["outputs"]) == 1


@pytest.mark.parametrize("content", ["plain", [{"type": "text", "text": "pla"}, {"type": "text", "text": "in"}]])
async def test_message_content_may_come_in_parts(client: httpx.AsyncClient, content: object, group: FakeGroup) -> None:
    message = {"role": "user", "content": content}
    response = await client.post("/predict", json={"inputs": [[message]], "parameters": {"max_tokens": 1}})
    assert response.status_code == 200
    engine = group.engine
    assert engine is not None
    assert "user\nplain\n" in demo_tokenizer().decode(engine.submitted[0].prompt)

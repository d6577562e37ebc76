"""Every error in one shape, with the field, the status and the header that help."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message, Receive, Scope, Send

from serving.api.errors import ErrorBoundary, translate
from tests.api.conftest import serving
from tests.fake_engine import FakeGroup, until
from tests.gateway.conftest import make_config

CHAT = [{"role": "user", "content": "Hi"}]


def error(response: httpx.Response, status: int) -> Any:
    """The error, whose shape is checked."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"type", "message", "param", "code"}
    return response.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/predict", {}, "inputs"),
        ("/predict", {"inputs": 5}, "inputs"),
        ("/predict", {"inputs": ""}, "inputs"),
        ("/predict", {"inputs": []}, "inputs"),
        ("/predict", {"inputs": ["x", ""]}, "inputs.1"),
        ("/predict", {"inputs": ["x"] * 65}, "inputs"),
        ("/predict", {"inputs": [[{"role": "robot", "content": "x"}]]}, "inputs.0.0.role"),
        ("/predict", {"inputs": [[{"role": "user"}]]}, "inputs.0.0.content"),
        ("/predict", {"inputs": "x", "parameters": {"max_tokens": 0}}, "parameters.max_tokens"),
        ("/predict", {"inputs": "x", "parameters": {"max_tokens": "5"}}, "parameters.max_tokens"),
        ("/predict", {"inputs": "x", "parameters": {"max_tokens": 5.5}}, "parameters.max_tokens"),
        ("/predict", {"inputs": "x", "parameters": {"max_tokens": True}}, "parameters.max_tokens"),
        ("/predict", {"inputs": "x", "parameters": {"max_tokens": 2048}}, "parameters.max_tokens"),
        ("/predict", {"inputs": "x", "parameters": {"min_tokens": 9, "max_tokens": 8}}, "parameters.min_tokens"),
        ("/predict", {"inputs": "x", "parameters": {"temperature": -0.1}}, "parameters.temperature"),
        ("/predict", {"inputs": "x", "parameters": {"temperature": "hot"}}, "parameters.temperature"),
        ("/predict", {"inputs": "x", "parameters": {"top_p": -0.1}}, "parameters.top_p"),
        ("/predict", {"inputs": "x", "parameters": {"n": 17}}, "parameters.n"),
        ("/predict", {"inputs": "x", "parameters": {"stop": ["a"] * 17}}, "parameters.stop"),
        ("/predict", {"inputs": "x", "parameters": {"stop": "a" * 257}}, "parameters.stop"),
        ("/predict", {"inputs": "x", "parameters": {"stop": ""}}, "parameters.stop"),
        ("/predict", {"inputs": "x", "parameters": {"logit_bias": {"49152": 1}}}, "parameters.logit_bias"),
        ("/predict", {"inputs": "x", "parameters": {"logit_bias": {"1": 101}}}, "parameters.logit_bias"),
        ("/predict", {"inputs": "x", "parameters": {"stop_token_ids": [49152]}}, "parameters.stop_token_ids"),
        ("/predict", {"inputs": "x", "parameters": {"logprobs": 21}}, "parameters.logprobs"),
        ("/predict", {"inputs": "x", "parameters": {"timeout_s": 0}}, "parameters.timeout_s"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": [[]]}, "prompt.0"),
        ("/v1/completions", {"prompt": [1, "x"]}, "prompt"),
        ("/v1/completions", {"prompt": [49152]}, "prompt"),
        ("/v1/completions", {"prompt": [1] * 2048}, "prompt"),
        ("/v1/completions", {"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": CHAT, "top_logprobs": 2}, "top_logprobs"),
        ("/v1/chat/completions", {"messages": CHAT, "logprobs": 1}, "logprobs"),
        (
            "/v1/chat/completions",
            {"messages": CHAT, "max_tokens": 1, "max_completion_tokens": 2},
            "max_completion_tokens",
        ),
        ("/v1/chat/completions", {"messages": CHAT, "max_completion_tokens": 3000}, "max_completion_tokens"),
        ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ],
)
async def test_a_wrong_field_is_named(client: httpx.AsyncClient, path: str, body: Any, param: str) -> None:
    got = error(await client.post(path, json=body), 400)
    assert got["param"] is not None
    assert got["param"].startswith(param)
    assert got["type"] == "invalid_request_error"
    assert got["message"].startswith(param)


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ({"inputs": "x", "paramters": {}}, "did you mean parameters?"),
        ({"inputs": "x", "parameters": {"max_token": 5}}, "did you mean max_tokens?"),
        ({"inputs": [[{"role": "user", "contents": "x"}]]}, "did you mean content?"),
        ({"inputs": "x", "zzz": 1}, "known here: inputs, raw, parameters, stream"),
    ],
)
async def test_an_unknown_field_is_refused_with_the_nearest_name(
    client: httpx.AsyncClient, body: Any, hint: str
) -> None:
    assert hint in error(await client.post("/predict", json=body), 400)["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b"\xff\xfe", b'{"inputs": "\\ud800"}', b'{"inputs": NaN}', b"[" * 100_000]
)
async def test_a_body_that_is_no_json_object_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    error(await client.post("/predict", content=body), 400)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused(group: FakeGroup, chunked: bool) -> None:
    async def chunks() -> Any:
        for _ in range(3):
            yield b" " * 1024

    async with serving(group, make_config("http.max_body_bytes=2048")) as (client, _):
        content = chunks() if chunked else b" " * 3072
        assert error(await client.post("/predict", content=content), 413)["code"] == "body_too_large"
        fits = json.dumps({"inputs": "x"}).encode().ljust(2048)
        assert (await client.post("/predict", content=fits)).status_code == 200


async def test_an_unknown_route_and_a_wrong_method_have_the_same_shape(client: httpx.AsyncClient) -> None:
    assert error(await client.get("/nope"), 404)["code"] == "route_not_found"
    response = await client.get("/predict")
    error(response, 405)
    assert response.headers["allow"] == "POST"


async def test_an_unknown_model_is_404(client: httpx.AsyncClient) -> None:
    assert error(await client.post("/v1/completions", json={"model": "m", "prompt": "x"}), 404)["param"] == "model"


async def test_a_full_queue_is_429_and_says_when_to_come_back(group: FakeGroup) -> None:
    group.behaviour.max_emitted = 0
    async with serving(group, make_config("http.max_waiting=0", "engine.max_running=1")) as (client, service):
        first = asyncio.create_task(client.post("/predict", json={"inputs": "x", "parameters": {"max_tokens": 1}}))
        await until(lambda: len(service.journal) == 1)
        response = await client.post("/predict", json={"inputs": "x"})
        assert error(response, 429)["type"] == "rate_limit_error"
        assert int(response.headers["retry-after"]) >= 1
        group.behaviour.max_emitted = 1
        assert (await first).status_code == 200


async def test_every_error_is_counted_by_its_status_and_code(client: httpx.AsyncClient, group: FakeGroup) -> None:
    await client.post("/predict", json={"inputs": ""})
    await client.get("/nope")
    await client.get("/nope")
    await client.get("/predict")
    group.behaviour.max_emitted = 2
    body = {"inputs": "x", "parameters": {"timeout_s": 0.2}, "stream": True}
    assert (await client.post("/predict", json=body)).status_code == 200
    page = (await client.get("/metrics")).text
    families = {family.name: family.samples for family in text_string_to_metric_families(page)}
    assert {
        (row.labels["status"], row.labels["code"]): row.value for row in families["http_errors"] if "total" in row.name
    } == {
        ("400", "invalid_request_error"): 1,
        ("404", "route_not_found"): 2,
        ("405", "invalid_request_error"): 1,
        ("504", "deadline_exceeded"): 1,
    }


async def test_a_deadline_in_the_queue_is_408_and_later_504(client: httpx.AsyncClient, group: FakeGroup) -> None:
    body = {"inputs": "x", "parameters": {"timeout_s": 0.1}}
    group.behaviour.max_emitted = 0
    error(await client.post("/predict", json=body), 408)
    group.behaviour.max_emitted = 1
    error(await client.post("/predict", json=body), 504)


async def test_an_error_after_a_stream_has_begun_is_its_last_event(client: httpx.AsyncClient, group: FakeGroup) -> None:
    group.behaviour.max_emitted = 2
    body = {"inputs": "x", "parameters": {"timeout_s": 0.2}, "stream": True}
    response = await client.post("/predict", json=body)
    assert response.status_code == 200
    last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["type"] == "timeout_error"


async def test_an_error_before_the_first_token_of_a_stream_has_its_own_status(
    client: httpx.AsyncClient, group: FakeGroup
) -> None:
    group.behaviour.refuse = "too long"
    error(await client.post("/predict", json={"inputs": "x", "stream": True}), 400)


async def test_a_group_that_failed_is_503_and_says_where_the_reason_is(group: FakeGroup) -> None:
    async with serving(group, make_config()) as (client, service):
        group.kill("failed")
        await until(lambda: service.state == "failed")
        response = await client.post("/predict", json={"inputs": "x"})
        assert "/v1/status says why" in error(response, 503)["message"]
        assert "retry-after" in response.headers


def test_a_defect_shows_nothing_of_itself() -> None:
    status, _, answer = translate(RuntimeError("secret"))
    assert status == 500
    assert "secret" not in answer.error.message


async def test_a_defect_in_a_plain_body_already_begun_is_not_hidden() -> None:
    async def half(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("half way")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(RuntimeError, match="half way"):
        await ErrorBoundary(half)({"type": "http", "path": "/"}, receive, send)
    assert len(sent) == 1


async def test_a_request_that_breaks_the_group_is_named_by_id_and_sizes_and_never_by_its_text(group: FakeGroup) -> None:
    body = {"prompt": "a secret that breaks it", "max_tokens": 8, "stream": True}
    group.behaviour.breaks_on = lambda _submit, _emitted: True

    async def nurse() -> None:
        for _ in range(4):
            await until(lambda: group.engine is not None and group.engine.broken, 60)
            group.kill()
            group.start()

    async with serving(group, make_config()) as (client, service):
        nursing = asyncio.create_task(nurse())
        for answer in (
            await client.post("/v1/completions", json=body),
            await client.post("/v1/completions", json=body),
        ):
            assert error(answer, 500)["code"] == "request_breaks_group"
            assert answer.headers["x-should-retry"] == "false"
        await nursing
        await until(lambda: service.ready)
        status, metrics = (await client.get("/v1/status")).json(), (await client.get("/metrics")).text
    [culprit] = status["culprits"]
    assert (status["suspects"], culprit["prompt_tokens"], culprit["completion_tokens"]) == ([], 5, 0)
    assert "group_breaking_requests_total 1.0" in metrics
    assert f'group_breaking_request{{completion_tokens="0",id="{culprit["id"]}",prompt_tokens="5"}} 1.0' in metrics
    assert "secret" not in json.dumps(status) + metrics

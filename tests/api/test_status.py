"""Probes, status, metrics, the schema, the console."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import jsonschema  # type: ignore[import-untyped]
import pytest

from serving.api.app import create_app
from serving.gateway.service import Service
from tests.api.conftest import serving
from tests.fake_engine import FakeGroup, until
from tests.gateway.conftest import demo_tokenizer, make_config


async def test_readiness_follows_the_group_and_health_does_not(group: FakeGroup) -> None:
    async with serving(group, make_config()) as (client, service):
        assert (await client.get("/readyz")).json() == {"state": "ready", "generation": 1}
        group.kill()
        await until(lambda: not service.ready)
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert "restarting" in response.json()["error"]["message"]
        assert int(response.headers["retry-after"]) >= 1
        assert (await client.get("/healthz")).status_code == 200
        group.start()
        await until(lambda: service.ready)
        assert (await client.get("/readyz")).json()["generation"] == 2


FAILURE = "FileNotFoundError: /srv/models/private on 10.1.2.3:7000"
ITS_WORDS = ("FileNotFoundError", "/srv", "10.1.2.3", "7000")


async def test_why_a_group_failed_is_told_to_nobody_without_a_key(group: FakeGroup, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    async with serving(group, make_config(f"security.api_keys_file={keys}")) as (client, service):
        group.turn("failed", first_failure=FAILURE, last_failure=FAILURE)
        await until(lambda: service.state == "failed")
        for path in ("/readyz", "/healthz", "/v1/status", "/metrics", "/", "/nope"):
            response = await client.get(path)
            assert not any(word in response.text + str(response.headers) for word in ITS_WORDS), path
        known = {"authorization": "Bearer sesame"}
        assert (await client.get("/v1/status", headers=known)).json()["first_failure"] == FAILURE


async def test_a_group_that_failed_answers_with_its_state_and_no_reason(group: FakeGroup) -> None:
    async with serving(group, make_config()) as (client, service):
        group.turn("failed", first_failure=FAILURE, last_failure=FAILURE)
        await until(lambda: service.state == "failed")
        answers = [await client.get("/readyz"), await client.post("/predict", json={"inputs": "x"})]
    for answer in answers:
        assert answer.status_code == 503
        assert answer.json()["error"] == {
            "type": "unavailable_error",
            "message": "the group has failed; /v1/status says why",
            "param": None,
            "code": "group_failed",
        }


async def test_before_the_first_generation_requests_are_503_and_health_is_200(group: FakeGroup) -> None:
    service = Service(make_config(), demo_tokenizer(), group)
    await service.start()
    transport = httpx.ASGITransport(create_app(service, make_config()))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/healthz")).status_code == 200
        response = await client.post("/predict", json={"inputs": "x"})
        assert response.status_code == 503
        assert "retry-after" in response.headers
        assert (await client.get("/v1/status")).json()["generation"] == 0
    await service.stop()


async def test_status_shows_the_ranks_and_no_key(group: FakeGroup) -> None:
    async with serving(group, make_config()) as (client, _):
        response = await client.get("/v1/status")
    status = response.json()
    assert status["state"] == status["group_state"] == "ready"
    assert status["ranks"][0]["shard_bytes"] == 10
    assert status["kv"] == {"blocks_used": 3, "blocks_total": 100}
    endpoint = group.snapshot.endpoint
    assert endpoint is not None
    assert not any(
        secret in response.text for secret in (endpoint.client_secret, endpoint.client_public, endpoint.address)
    )


def metric(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


async def test_metrics_count_what_happened(group: FakeGroup) -> None:
    group.behaviour.tokens_per_step = 2
    async with serving(group, make_config()) as (client, _):
        await client.post("/predict", json={"inputs": "one two", "raw": True, "parameters": {"max_tokens": 6}})
        response = await client.get("/metrics")
    text = response.text
    assert response.headers["content-type"].startswith("text/plain")
    assert metric(text, "time_to_first_token_seconds_count") == 1
    assert metric(text, "inter_token_latency_seconds_count") == 4
    assert metric(text, "request_seconds_count") == 1
    assert metric(text, 'requests_total{outcome="completed"}') == 1
    assert metric(text, "prompt_tokens_total") == 2
    assert metric(text, "generation_tokens_total") == 6
    assert metric(text, 'step_seconds_sum{phase="forward"}') == pytest.approx(0.03)
    assert metric(text, 'step_seconds_count{phase="forward"}') == 3
    assert metric(text, "kv_blocks_used") == 3
    assert metric(text, "group_restarts_total") == 0
    for name in ("requests_running", "requests_waiting", "preemptions_total", "broadcast_bytes_total"):
        assert metric(text, name) == 0


async def test_the_schema_covers_every_route_and_its_answers_are_valid(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    routes = {
        "/predict",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/models",
        "/v1/status",
        "/metrics",
        "/",
    }
    assert routes < set(document["paths"])
    for path, body, name in (
        ("/predict", {"inputs": "x", "parameters": {"max_tokens": 2, "logprobs": 1}}, "Prediction"),
        ("/v1/completions", {"prompt": "x", "logprobs": 1}, "Completion"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}, "ChatCompletion"),
        ("/v1/embeddings", {"input": "x"}, "EmbeddingList"),
        ("/predict", {}, "ErrorAnswer"),
    ):
        answer = (await client.post(path, json=body)).json()
        jsonschema.validate(answer, {"$ref": f"#/components/schemas/{name}", "components": document["components"]})
    status = (await client.get("/v1/status")).json()
    jsonschema.validate(status, {"$ref": "#/components/schemas/Status", "components": document["components"]})


async def test_the_console_asks_nobody_else(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "http://" not in response.text
    assert "https://" not in response.text


def test_importing_the_api_brings_no_torch() -> None:
    code = (
        "import sys, serving.api.app, serving.gateway.service; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

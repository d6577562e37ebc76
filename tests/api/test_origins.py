"""Web pages that ask: whose, and by which name of the server's."""

from pathlib import Path

import httpx
import pytest

from serving.config import is_loopback
from serving.errors import ConfigError
from tests.api.conftest import serving
from tests.fake_engine import FakeGroup
from tests.gateway.conftest import make_config

FOREIGN = {"origin": "https://evil.example"}
SMALL = {"inputs": "x", "parameters": {"max_tokens": 2}}
WIDE = ("http.host=0.0.0.0", "security.insecure=true")
OWN_HOSTS = ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.8.9.10:80", "[::1]", "[::1]:8000"]
FOREIGN_HOSTS = ["evil.example", "localhost.evil.example:8000", "0.0.0.0:8000", "10.0.0.1", "[::2]:8000", "127.0.0.1.x"]


def code_of(answer: httpx.Response) -> str:
    """The code of an error in the shape of all errors."""
    error = answer.json()["error"]
    assert set(error) == {"type", "message", "param", "code"}
    assert error["type"] == "permission_error"
    return str(error["code"])


@pytest.mark.parametrize("host", OWN_HOSTS)
async def test_on_loopback_the_server_is_asked_by_names_of_loopback(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/v1/status", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
async def test_on_loopback_another_name_is_refused_but_for_the_probes(client: httpx.AsyncClient, host: str) -> None:
    for path in ("/v1/status", "/", "/metrics", "/nope"):
        answer = await client.get(path, headers={"host": host})
        assert (answer.status_code, code_of(answer)) == (403, "foreign_host")
    for path in ("/healthz", "/readyz"):
        assert (await client.get(path, headers={"host": host} | FOREIGN)).status_code == 200


async def test_two_hosts_of_which_one_is_foreign_are_refused(client: httpx.AsyncClient) -> None:
    twice = [("host", "localhost"), ("host", "evil.example")]
    assert (await client.get("/v1/status", headers=twice)).status_code == 403


@pytest.mark.parametrize("settings", [(), WIDE])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:81", "https://localhost", ""])
async def test_without_keys_a_foreign_page_is_refused_on_any_bind(
    group: FakeGroup, settings: tuple[str, ...], origin: str
) -> None:
    async with serving(group, make_config(*settings)) as (client, _):
        answer = await client.post("/predict", json=SMALL, headers={"origin": origin})
        assert (answer.status_code, code_of(answer)) == (403, "foreign_origin")
        assert (await client.options("/predict", headers={"origin": origin})).status_code == 403


async def test_the_servers_own_page_and_programs_without_a_page_are_answered(client: httpx.AsyncClient) -> None:
    own = {"host": "localhost:8000", "origin": "http://localhost:8000"}
    for headers in ({}, own):
        assert (await client.post("/predict", json=SMALL, headers=headers)).status_code == 200


async def test_on_another_bind_any_name_is_answered_unless_names_are_listed(group: FakeGroup) -> None:
    async with serving(group, make_config(*WIDE)) as (client, _):
        assert (await client.get("/v1/status", headers={"host": "gpu1"})).status_code == 200
    async with serving(group, make_config(*WIDE, "security.allowed_hosts=[GPU1]")) as (client, _):
        for host, status in (("gpu1:8000", 200), ("localhost", 200), ("evil.example", 403)):
            assert (await client.get("/v1/status", headers={"host": host})).status_code == status


async def test_a_page_that_is_allowed_is_answered_with_what_its_browser_asks_for(group: FakeGroup) -> None:
    page = "https://chat.example"
    async with serving(group, make_config(f"security.allowed_origins=[{page}]")) as (client, _):
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,x-a"}
        preflight = await client.options("/predict", headers={"origin": page} | asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == page
        assert preflight.headers["access-control-allow-headers"] == "content-type,x-a"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        for body, status in ((SMALL, 200), ({}, 400)):
            answer = await client.post("/predict", json=body, headers={"origin": page})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == page
            assert "Origin" in answer.headers["vary"]
        foreign = await client.options("/predict", headers=FOREIGN | asked)
        assert foreign.status_code == 403
        assert "access-control-allow-origin" not in foreign.headers


async def test_with_keys_a_preflight_needs_none_and_a_page_needs_one(group: FakeGroup, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sesame")
    settings = (f"security.api_keys_file={keys}", "security.allowed_origins=['*']")
    async with serving(group, make_config(*settings)) as (client, _):
        asked = {"access-control-request-method": "POST"}
        assert (await client.options("/predict", headers=FOREIGN | asked)).status_code == 204
        refused = await client.post("/predict", json=SMALL, headers=FOREIGN)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == FOREIGN["origin"]
        key = {"authorization": "Bearer sesame", "host": "gpu1"}
        assert (await client.post("/predict", json=SMALL, headers=FOREIGN | key)).status_code == 200


@pytest.mark.parametrize("origin", ["chat.example", "https://chat.example/", "null", "https://"])
def test_an_origin_that_no_browser_would_send_is_a_wrong_setting(origin: str) -> None:
    with pytest.raises(ConfigError, match="allowed_origins"):
        make_config(f"security.allowed_origins=['{origin}']")


def test_all_of_loopback_may_be_bound_without_keys() -> None:
    for host in ("127.0.0.2", "::1", "LocalHost"):
        assert is_loopback(host)
        assert make_config(f"http.host={host}").http.host == host
    assert not is_loopback("localhost.example")

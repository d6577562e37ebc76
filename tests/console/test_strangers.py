"""Pages of others in the system's headless Chromium, which ask a server on loopback that wants no keys."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page

from tests.api.conftest import Server, listening
from tests.browser import chromium, needs_chromium
from tests.fake_engine import fake_group
from tests.gateway.conftest import make_config

pytestmark = needs_chromium

REBOUND = "rebound.example"
"""A name that the browser finds at 127.0.0.1."""
ASK = """async ([url, mode, type]) => {
    const body = JSON.stringify({inputs: "x", parameters: {max_tokens: 2}});
    try {
        const answer = await fetch(url, {method: "POST", mode: mode, headers: {"content-type": type}, body: body});
        return answer.type === "opaque" ? "opaque" : await answer.json();
    } catch (error) {
        return String(error);
    }
}"""


class EmptyPage(BaseHTTPRequestHandler):
    """A page of somebody's."""

    def do_GET(self) -> None:
        self.send_response(httpx.codes.OK)
        self.send_header("content-type", "text/html")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nowhere."""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1") as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context() as context:
        yield context.new_page()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with fake_group() as group, listening(group, make_config()) as server:
        yield server


@pytest.fixture(scope="module")
def open_server(elsewhere: str) -> Iterator[Server]:
    """One that this page may ask."""
    with (
        fake_group() as group,
        listening(group, make_config(f"security.allowed_origins=['{elsewhere}']")) as server,
    ):
        yield server


def test_a_strangers_page_cannot_make_the_server_compute(page: Page, elsewhere: str, server: Server) -> None:
    """A form's kind of request, which a browser sends without a preflight."""
    page.goto(elsewhere)
    with page.expect_response(f"{server.url}/predict") as answered:
        assert page.evaluate(ASK, [f"{server.url}/predict", "no-cors", "text/plain"]) == "opaque"
    assert answered.value.status == 403


def test_a_name_that_is_made_to_mean_loopback_shows_nothing(page: Page, server: Server) -> None:
    url = server.url.replace("127.0.0.1", REBOUND)
    for path in ("/v1/status", "/"):
        answer = page.goto(f"{url}{path}")
        assert answer is not None
        assert answer.status == 403
        assert answer.json()["error"]["code"] == "foreign_host"


def test_a_page_that_is_allowed_asks_and_reads(page: Page, elsewhere: str, open_server: Server) -> None:
    page.goto(elsewhere)
    said = page.evaluate(ASK, [f"{open_server.url}/predict", "cors", "application/json"])
    assert said["outputs"][0]["usage"]["completion_tokens"] == 2


def test_a_page_that_is_not_allowed_can_neither_ask_nor_read(page: Page, elsewhere: str, server: Server) -> None:
    page.goto(elsewhere)
    said = page.evaluate(ASK, [f"{server.url}/predict", "cors", "application/json"])
    assert "Failed to fetch" in said

"""The console in the system's headless Chromium, over the real application and a fake group."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect

from serving.messages import RankInfo
from tests.api.conftest import Server, listening
from tests.browser import chromium, needs_chromium, picture
from tests.fake_engine import fake_group
from tests.gateway.conftest import make_config

pytestmark = needs_chromium

PHONE = ViewportSize(width=360, height=740)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Fails a test whose page has thrown, or has asked somebody else."""
    with browser.new_context() as context:
        page = context.new_page()
        errors: list[str] = []
        asked: set[str] = set()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if "Content Security" in said.text else None)
        page.on("request", lambda request: asked.add(request.url.split("/")[2] if "//" in request.url else ""))
        yield page
        assert errors == []
        assert len(asked - {""}) <= 1


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with fake_group() as group, listening(group, make_config()) as server:
        ranks = [
            RankInfo(
                rank=rank, node_id=f"node{rank // 2}", ip=f"10.0.0.{rank // 2}", pid=100 + rank, device="cpu",
                shard_bytes=135_000_000, loaded_bytes=135_000_000, heads=5 - rank % 2,
            )
            for rank in range(4)
        ]  # fmt: skip
        group.turn("ready", ranks=ranks)
        group.behaviour.pause_s = 0.02
        yield server


def send(page: Page, prompt: str, **fields: str) -> None:
    page.locator("#prompt").fill(prompt)
    page.locator("#parameters").evaluate("details => details.open = true")
    for name, value in fields.items():
        page.locator(f"#field-{name}").fill(value)
    page.locator("#send").click()


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions", "/predict"])
def test_an_answer_streams_and_comes_with_curl_and_python(page: Page, server: Server, endpoint: str) -> None:
    page.goto(server.url)
    page.locator("#endpoint").select_option(endpoint)
    send(page, "It's <b>", max_tokens="12", temperature="0.5", seed="7", stop="zzzz")
    expect(page.locator("#told")).to_have_text("Done.")
    expect(page.locator("#progress")).to_contain_text("12 tokens")
    expect(page.locator("#progress")).to_contain_text("tokens/s")
    expect(page.locator("#answers")).to_contain_text("finish_reason: length")
    assert page.locator("#answers .words").inner_text().strip()
    for form in ("#curl", "#python"):
        expect(page.locator(form)).to_contain_text(endpoint)
        expect(page.locator(form)).to_contain_text('"temperature": 0.5' if form == "#python" else '"temperature":0.5')
    compile(page.locator("#python").inner_text(), "snippet", "exec")


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions", "/predict"])
def test_log_probabilities_are_shown_beside_their_tokens(page: Page, server: Server, endpoint: str) -> None:
    page.goto(server.url)
    page.locator("#endpoint").select_option(endpoint)
    send(page, "x", max_tokens="6", logprobs="2")
    expect(page.locator("#told")).to_have_text("Done.")
    assert len(re.findall(r'" -\d+\.\d\d', page.locator("#answers .likely").inner_text())) == 6


def test_raw_is_offered_where_there_is_a_template_to_leave_out(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.locator("#parameters").evaluate("details => details.open = true")
    raw = page.locator("#field-raw")
    expect(raw).to_be_disabled()
    page.locator("#endpoint").select_option("/predict")
    raw.check()
    send(page, "x", max_tokens="2")
    expect(page.locator("#curl")).to_contain_text('"raw":true')
    expect(page.locator("#told")).to_have_text("Done.")
    page.locator("#endpoint").select_option("/v1/completions")
    page.locator("#send").click()
    expect(page.locator("#told")).to_have_text("Done.")
    expect(page.locator("#curl")).not_to_contain_text("raw")


def test_what_is_copied_asks_the_same_elsewhere(page: Page, server: Server) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(server.url)
    send(page, "It's the fisher's <b>", max_tokens="5")
    expect(page.locator("#told")).to_have_text("Done.")
    commands = {"curl": ["bash", "-c"], "python": [sys.executable, "-c"]}
    for name, command in commands.items():
        page.locator(f"[data-copies={name}]").click()
        expect(page.locator("#told")).to_have_text(f"Copied {name}.")
        copied = page.evaluate("navigator.clipboard.readText()")
        answer = subprocess.run([*command, copied], capture_output=True, text=True, check=True).stdout
        assert answer.rstrip().endswith("data: [DONE]")
        assert '"finish_reason":"length"' in answer


def test_the_charts_show_what_the_server_counts(page: Page, server: Server) -> None:
    page.goto(server.url)
    send(page, "x", max_tokens="200")
    charts = page.locator("#charts figure")
    for name in ("Tokens/s", "TTFT", "KV blocks used"):
        figure = charts.filter(has_text=name)
        expect(figure.locator("output")).to_have_text(re.compile(r"[1-9]"))
        expect(figure.locator("path.line").first).to_be_attached()
    expect(charts.filter(has_text="Requests").locator("output")).to_have_text("1 running · 0 waiting")
    page.locator("#stop").click()
    expect(page.locator("#told")).to_have_text("Stopped.")


def test_the_stop_button_ends_the_answer_on_the_server_too(page: Page, server: Server) -> None:
    page.goto(server.url)
    send(page, "x", max_tokens="500")
    expect(page.locator("#progress")).to_contain_text("tokens/s")
    page.locator("#stop").click()
    expect(page.locator("#told")).to_have_text("Stopped.")
    page.wait_for_function("async () => (await (await fetch('v1/status')).json()).queue.running === 0")


def test_a_wrong_parameter_is_told_in_the_servers_words(page: Page, server: Server) -> None:
    page.goto(server.url)
    send(page, "x", logit_bias="nonsense")
    expect(page.locator("#told")).to_contain_text("logit_bias")


def test_the_group_is_drawn_with_its_nodes_ranks_shards_and_heads(page: Page, server: Server) -> None:
    page.goto(server.url)
    expect(page.locator(".node")).to_have_count(2)
    expect(page.locator(".rank")).to_have_count(4)
    expect(page.locator("[data-rank='1']")).to_contain_text("135 MB · 4 heads")
    expect(page.locator("[data-rank='1']")).to_contain_text("ready")
    expect(page.locator("#drawing-text")).to_contain_text("rank 1, 135 MB · 4 heads, ready")
    expect(page.locator("#charts figure")).to_have_count(4)


def test_the_page_works_from_the_keyboard_alone(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    for place in ("#endpoint", "#system", "#prompt"):
        page.keyboard.press("Tab")
        expect(page.locator(place)).to_be_focused()
    for place in ("summary", "#send"):
        page.keyboard.press("Tab")
        expect(page.locator(place)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#told")).to_have_text("Stopped.")
    expect(page.locator("#send")).to_be_focused()


def test_everything_that_can_be_filled_in_has_a_label(page: Page, server: Server) -> None:
    page.goto(server.url)
    unlabelled = "all => all.filter(one => !one.labels?.length).map(one => one.id)"
    assert page.locator("input, select, textarea").evaluate_all(unlabelled) == []


def test_the_key_is_asked_for_and_kept_in_the_tab_only(page: Page, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("console:let-me-in\n")
    with fake_group() as group, listening(group, make_config(f"security.api_keys_file={keys}")) as server:
        page.goto(server.url)
        for key in ("wrong", "let-me-in"):
            expect(page.locator("#key-dialog")).to_be_visible()
            page.locator("#key").fill(key)
            page.keyboard.press("Enter")
        expect(page.locator("#state-text")).to_contain_text("ready")
        send(page, "x", max_tokens="2")
        expect(page.locator("#told")).to_have_text("Done.")
        assert "let-me-in" not in page.content()
        page.reload()
        expect(page.locator("#state-text")).to_contain_text("ready")
        other = page.context.new_page()
        other.goto(server.url)
        expect(other.locator("#key-dialog")).to_be_visible()
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        other.close()
        page.goto("about:blank")


def test_the_page_says_when_the_server_is_gone_and_recovers(page: Page, server: Server) -> None:
    page.goto(server.url)
    expect(page.locator("#state-text")).to_contain_text("ready")
    page.context.set_offline(True)
    expect(page.locator("#notice")).to_contain_text("The server is gone")
    page.context.set_offline(False)
    expect(page.locator("#notice")).to_be_hidden()
    expect(page.locator("#state-text")).to_contain_text("ready")


def test_a_server_that_ends_is_told_as_gone(page: Page) -> None:
    with fake_group() as group, listening(group, make_config()) as server:
        page.goto(server.url)
        expect(page.locator("#state-text")).to_contain_text("ready")
    expect(page.locator("#notice")).to_contain_text("The server is gone")


def test_a_phone_never_scrolls_sideways(page: Page, server: Server) -> None:
    page.set_viewport_size(PHONE)
    page.goto(server.url)
    send(page, "x" * 300, max_tokens="8")
    expect(page.locator("#told")).to_have_text("Done.")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    picture(page, "phone")


@pytest.mark.parametrize(("scheme", "bright"), [("light", True), ("dark", False)])
def test_the_page_follows_the_readers_colour_scheme(page: Page, server: Server, scheme: str, bright: bool) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(server.url)
    send(page, "What is the capital of France?", max_tokens="60")
    expect(page.locator("#told")).to_have_text("Done.")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(colour.removeprefix("rgb(").split(",")[0]) > 128) == bright
    picture(page, scheme)


def test_an_unchanged_file_is_not_sent_twice_and_nothing_foreign_may_load(page: Page, server: Server) -> None:
    first = page.request.get(f"{server.url}/console/main.js")
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    assert first.headers["content-security-policy"].startswith("default-src 'self'")
    again = page.request.get(f"{server.url}/console/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body()) == (304, b"")
    page.goto(server.url)

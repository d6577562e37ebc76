"""`gangway serve` with the demo model on two ranks, over real HTTP. The tests run in order: the last one stops it."""

import asyncio
import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from playwright.sync_api import expect

from serving.runtime.ray_cluster import reaper
from tests.browser import chromium, needs_chromium, picture
from tests.e2e.flood import flood, peak_bytes
from tests.e2e.server import Server, eventually, gangway

NAME = "smollm2-135m-instruct"
TIMEOUT_S = 120.0
STORY = "Once upon a time, in a small village by the sea,"


def predict(server: Server, inputs: Any, **parameters: Any) -> Any:
    body = {"inputs": inputs, "raw": True, "parameters": {"temperature": 0, "max_tokens": 16} | parameters}
    answer = httpx.post(f"{server.url}/predict", json=body, timeout=TIMEOUT_S)
    assert answer.status_code == httpx.codes.OK, answer.text
    return answer.json()["outputs"]


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=TIMEOUT_S, max_retries=0)


def story(server: Server, tokens: int) -> list[str]:
    """The same story each time, as its pieces come."""
    with client(server) as api:
        stream = api.completions.create(model=NAME, prompt=STORY, max_tokens=tokens, temperature=0, stream=True)
        return [chunk.choices[0].text for chunk in stream]


@pytest.mark.quick
def test_a_prompt_is_completed(server: Server) -> None:
    (output,) = predict(server, "The capital of France is")
    assert "Paris" in output["text"]
    assert output["usage"]["completion_tokens"] == 16


def test_bodies_without_bound_are_refused_and_cost_the_gateway_nothing(server: Server) -> None:
    """Serve would read them ahead, whatever the application says of them."""
    pid = server.status()["gateway"]["pid"]
    before = peak_bytes(pid)
    for path in ("/predict", "/v1/chat/completions", "/healthz", "/nope"):
        assert flood(server.url, path, chunked=False) == {413}
    for path in ("/predict", "/v1/chat/completions"):
        assert flood(server.url, path, chunked=True) == {413}
    assert flood(server.url, "/nope", chunked=True) <= {404, 413}
    assert peak_bytes(pid) - before < 64 * 2**20


def test_a_bare_question_is_answered_as_a_chat(server: Server) -> None:
    body = {"inputs": "What is the capital of France?", "parameters": {"temperature": 0, "max_tokens": 16}}
    answer = httpx.post(f"{server.url}/predict", json=body, timeout=TIMEOUT_S)
    assert "Paris" in answer.json()["outputs"][0]["text"]


def test_a_list_of_prompts_comes_back_in_order(server: Server) -> None:
    outputs = predict(server, ["The capital of France is", "The capital of Italy is"])
    assert ["Paris" in outputs[0]["text"], "Rome" in outputs[1]["text"]] == [True, True]


@pytest.mark.quick
def test_the_openai_client_chats_and_is_told_paris(server: Server) -> None:
    with client(server) as api:
        answer = api.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            max_tokens=32,
            temperature=0,
        )
    assert "Paris" in str(answer.choices[0].message.content)


@pytest.mark.quick
def test_a_stream_says_what_a_whole_answer_says(server: Server) -> None:
    (whole,) = predict(server, STORY, max_tokens=24)
    assert "".join(story(server, 24)) == whole["text"]


def test_what_clients_rely_on_holds_of_a_real_server(server: Server) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.interop", server.url], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.quick
def test_many_mixed_requests_at_once_are_all_answered(server: Server) -> None:
    prompts = [f"{count} and {count} make" for count in range(16)]

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=TIMEOUT_S) as api:
            texts = [api.completions.create(model=NAME, prompt=p, max_tokens=16, temperature=0) for p in prompts]
            chats = [
                api.chat.completions.create(model=NAME, messages=[{"role": "user", "content": p}], max_tokens=8, seed=1)
                for p in prompts
            ]
            completions, conversations = await asyncio.gather(asyncio.gather(*texts), asyncio.gather(*chats))
        return [one.choices[0].finish_reason for one in completions] + [
            one.choices[0].finish_reason for one in conversations
        ]

    reasons = asyncio.run(ask())
    assert len(reasons) == 2 * len(prompts)
    assert set(reasons) <= {"stop", "length"}


@pytest.mark.quick
def test_the_status_shows_both_ranks_and_the_weights_they_hold(server: Server) -> None:
    status = server.status()
    assert (status["state"], [rank["rank"] for rank in status["ranks"]]) == ("ready", [0, 1])
    assert all(0 < rank["shard_bytes"] == rank["loaded_bytes"] for rank in status["ranks"])


def test_the_benchmark_measures_the_running_server(server: Server) -> None:
    command = gangway("bench", "--url", server.url, "--concurrency", "1,4", "--output-tokens", "8", "--json")
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    levels = json.loads(done.stdout)["levels"]
    assert [(level["concurrency"], level["failed"]) for level in levels] == [(1, 0), (4, 0)]


def test_nothing_but_ray_itself_listens_beyond_loopback(server: Server) -> None:
    listening = [
        (process.name(), connection.laddr)
        for process in server.processes()
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    http = [address.ip for name, address in listening if name == "haproxy" or address.port == server.port]
    assert http
    assert set(http) == {"127.0.0.1"}


def test_no_process_runs_beside_the_group_that_only_wakes(server: Server) -> None:
    needless = "log_monitor", "_private/monitor", "PlacementGroupCleaner", "DatasetManager", "PreemptionWatcher"
    assert [title for title in server.titles() if any(name in title for name in needless)] == []


def test_a_second_server_on_the_same_port_says_so_and_exits_1(server: Server) -> None:
    second = Server("--set", f"http.port={server.port}")
    try:
        line = second.wait_for_line("gangway:")
        assert f"127.0.0.1:{server.port}" in line
        assert second.wait() == 1
    finally:
        second.kill()


@pytest.mark.quick
def test_a_client_that_goes_away_frees_its_place(server: Server) -> None:
    body = {"inputs": STORY, "raw": True, "stream": True, "parameters": {"max_tokens": 1500, "ignore_eos": True}}
    with httpx.stream("POST", f"{server.url}/predict", json=body, timeout=TIMEOUT_S) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        eventually(lambda: server.status()["queue"]["running"] == 1)
    eventually(lambda: server.status()["queue"]["running"] == 0)


@pytest.mark.quick
def test_a_stream_goes_on_to_the_letter_when_a_rank_is_killed(server: Server) -> None:
    undisturbed = "".join(story(server, 60))
    before = server.status()
    with client(server) as api:
        stream = api.completions.create(model=NAME, prompt=STORY, max_tokens=60, temperature=0, stream=True)
        pieces = [next(stream).choices[0].text]
        psutil.Process(before["ranks"][1]["pid"]).kill()
        pieces += [chunk.choices[0].text for chunk in stream]
    assert "".join(pieces) == undisturbed
    after = server.status()
    assert (after["generation"], after["restarts"]) == (before["generation"] + 1, before["restarts"] + 1)
    assert "rank 1's process died" in after["last_failure"]


@needs_chromium
def test_the_console_shows_a_rank_die_and_come_back_while_its_stream_goes_on(server: Server) -> None:
    undisturbed, before = "".join(story(server, 300)), server.status()
    with chromium() as browser, browser.new_page() as page:
        page.set_default_timeout(1000 * TIMEOUT_S)
        page.goto(server.url)
        page.wait_for_function("() => document.querySelector('[data-rank=\"1\"]')?.textContent.includes('ready')")
        expect(page.locator("[data-rank='1']")).to_contain_text("3 heads")  # of the model's 9
        page.locator("#endpoint").select_option("/v1/completions")
        page.locator("#prompt").fill(STORY)
        page.locator("summary").click()
        page.locator("#field-max_tokens").fill("300")
        page.locator("#field-temperature").fill("0")
        page.locator("#send").click()
        page.wait_for_function("() => document.querySelector('#progress').textContent.includes('tokens')")
        psutil.Process(before["ranks"][1]["pid"]).kill()
        page.wait_for_function("() => document.querySelector('[data-rank=\"1\"]').textContent.includes('dead')")
        expect(page.locator("#told")).to_have_text("Done.", timeout=1000 * TIMEOUT_S)
        assert page.locator("#answers .words").text_content() == undisturbed
        expect(page.locator("#state-text")).to_have_text(f"ready, generation {before['generation'] + 1}")
        expect(page.locator("#facts")).to_contain_text("rank 1's process died")
        picture(page, "after a rank died")


def test_a_gateway_that_is_killed_comes_back_without_a_new_generation(server: Server) -> None:
    generation = server.status()["generation"]
    (gateway,) = [process for process in server.processes() if "ServeReplica" in " ".join(process.cmdline())]
    gateway.kill()
    eventually(lambda: not gateway.is_running() and server.is_ready())
    assert server.status()["generation"] == generation
    assert "Paris" in predict(server, "The capital of France is")[0]["text"]


@pytest.mark.quick
def test_ctrl_c_lets_what_runs_finish_refuses_what_is_new_and_leaves_no_process(server: Server) -> None:
    with ThreadPoolExecutor() as pool:
        running = pool.submit(predict, server, STORY, max_tokens=200, ignore_eos=True)
        eventually(lambda: server.status()["queue"]["running"] == 1)
        server.signal(signal.SIGINT)
        eventually(lambda: not server.is_ready())
        refused = httpx.post(f"{server.url}/predict", json={"inputs": "late"}, timeout=TIMEOUT_S)
        assert refused.status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert running.result()[0]["usage"]["completion_tokens"] == 200
    assert server.wait() == 0
    server.wait_until_gone()


def test_a_server_that_is_killed_outright_leaves_nothing_but_log_files() -> None:
    server = Server()
    try:
        server.wait_until_ready()
        sockets, temporary = guarded_folders(server)
        assert (sockets.exists(), temporary.exists()) == (True, True)
        server.signal(signal.SIGKILL)
        server.wait_until_gone()
        assert (sockets.exists(), temporary.exists()) == (False, False)
    finally:
        server.kill()


def guarded_folders(server: Server) -> tuple[Path, Path]:
    """The sockets of the server's Ray session and its temporary folder, as its guardian was told."""
    commands = [process.cmdline() for process in server.processes()]
    (command,) = [command for command in commands if reaper.__file__ in command]
    session, _, temporary = command[-3:]
    return Path(session, "sockets"), Path(temporary)


def test_a_model_that_is_found_wrong_while_loading_ends_the_server_with_that_reason() -> None:
    server = Server("--set", "engine.kv_cache_gib=0.001")
    try:
        assert "engine.kv_cache_gib" in server.wait_for_line("gangway:")
        assert server.wait() == 1
        server.wait_until_gone()
    finally:
        server.kill()

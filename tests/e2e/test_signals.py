"""Signals that reach more than the command, and a cluster that ends before it."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.e2e.server import Server, eventually

TOKENS = 60
PATIENT = ("--set", "fault.drain_timeout_s=600")


def stream(server: Server) -> list[str]:
    """The texts of a stream, to its end."""
    parameters = {"max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
    body = {"inputs": "Once upon a time", "raw": True, "stream": True, "parameters": parameters}
    with httpx.stream("POST", f"{server.url}/predict", json=body, timeout=600) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line)["text"] for line in lines]


def test_a_signal_to_the_whole_group_drains_the_command_and_leaves_no_process() -> None:
    """Twice at once, as `timeout` sends it: to the command, and to the group."""
    server = Server(*PATIENT)
    try:
        server.wait_until_ready()
        undisturbed = stream(server)
        with ThreadPoolExecutor() as pool:
            running = pool.submit(stream, server)
            eventually(lambda: server.status()["queue"]["running"] == 1)
            server.processes()
            server.process.send_signal(signal.SIGTERM)
            os.killpg(server.process.pid, signal.SIGTERM)
            assert running.result() == undisturbed
        assert server.wait() == 0
        server.wait_until_gone()
    finally:
        server.kill()


def test_a_cluster_that_ends_under_the_command_ends_it_with_a_sentence_and_leaves_no_process() -> None:
    server = Server()
    try:
        server.wait_until_ready()
        (victim,) = server.named("/gcs/gcs_server ")
        victim.kill()
        assert "has ended, and with it all requests" in server.wait_for_line("gangway: ")
        assert server.wait() == 1
        server.wait_until_gone()
    finally:
        server.kill()

"""The load test's client against a server that follows a script: each figure, and each way an answer can be bad."""

import socket
import time

import pytest

from tests.loadtests.scripted import Rows, answer, send

EVENT = b'data: {"choices": [{"text": "a"}]}\n\n'
LAST = b'data: {"choices": [{"text": "b"}], "usage": {"completion_tokens": 3}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = b'{"outputs": [{"usage": {"completion_tokens": 3}}]}'


def failure(rows: Rows) -> str:
    """The one failure, which stands in the row of the whole request."""
    (total,) = (row for row in rows if row["request_type"] == "total")
    assert all(row["exception"] is None for row in rows if row is not total)
    assert total["exception"] is not None
    return f"{type(total['exception']).__name__}: {total['exception']}"


def test_first_token_gaps_and_total_are_those_of_the_events_on_the_wire() -> None:
    rows: Rows = []
    sent: list[float] = []

    def script(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        for number, event in enumerate((EVENT, EVENT, LAST)):
            while len(rows) < number:  # no two events in one read
                time.sleep(0.001)
            sent.append(time.perf_counter())
            connection.sendall(event)
        connection.sendall(DONE)

    began = time.perf_counter()
    send(script, stream=True, rows=rows)
    ended = time.perf_counter()
    assert [row["request_type"] for row in rows] == ["TTFT", "inter-token", "inter-token", "total"]
    assert all(row["name"] == "r" and row["exception"] is None for row in rows)
    for number, at in enumerate(sent):
        read_ms = sum(row["response_time"] for row in rows[: number + 1])
        assert read_ms >= (at - sent[0]) * 1000, "a token was read before it was sent"
    assert sum(row["response_time"] for row in rows[:3]) <= rows[3]["response_time"] <= (ended - began) * 1000


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (EVENT + LAST, "without [DONE]"),
        (EVENT + DONE, "0 tokens instead of 3"),
        (EVENT + b'data: {"error": {"message": "the group is gone"}}\n\n' + DONE, "the group is gone"),
        (EVENT + b'data: {"error": "x"}\n\n', "TypeError"),
        (EVENT + b"data: [1]\n\n", "AttributeError"),
        (EVENT + b'data: {"usage": 7}\n\n', "AttributeError"),
        (b"data: {\n\n", "JSONDecodeError"),
    ],
)
def test_a_stream_that_is_not_what_was_asked_for_is_a_failure(body: bytes, told: str) -> None:
    assert told in failure(send(lambda connection: connection.sendall(answer(body)), stream=True))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (answer(WHOLE, "429 Too Many Requests"), "429 instead of 200"),
        (answer(b'{"outputs": []}'), "0 tokens instead of 3"),
        (answer(b'{"outputs": [{"usage": null}]}'), "TypeError"),
        (answer(b"[1]"), "TypeError"),
        (answer(b"{}"), "KeyError"),
        (answer(b"<html>"), "JSONDecodeError"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", ""),
        (b"", ""),
        (b"220 smtp ready\r\n\r\n", ""),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_a_failure(body: bytes, told: str) -> None:
    assert told in failure(send(lambda connection: connection.sendall(body), stream=False))


def test_a_refusal_that_is_expected_is_none_and_must_say_why() -> None:
    good, bad = (
        answer(b'{"error": {"message": "no"}}', "400 Bad Request"),
        answer(b'{"error": {"message": ""}}', "400 Bad"),
    )
    (total,) = send(lambda connection: connection.sendall(good), stream=False, status=400)
    assert total["exception"] is None
    assert "without a message" in failure(send(lambda connection: connection.sendall(bad), stream=False, status=400))


def test_an_impatient_client_leaves_after_so_many_events_without_a_failure() -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + EVENT * 2)
        assert connection.recv(1) == b"", "the client has stayed"

    rows = send(script, stream=True, leave_after=2)
    assert [row["request_type"] for row in rows] == ["TTFT", "inter-token", "total"]
    assert rows[-1]["exception"] is None

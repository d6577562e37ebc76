"""A server that answers one request by a script: a bare socket, so that nothing of ours decides what is right."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from loadtests.client import Client
from loadtests.prompts import Ask

Rows = list[dict[str, Any]]
Script = Callable[[socket.socket], None]


@contextmanager
def following(script: Script) -> Iterator[str]:
    """A server that answers one request by a script, and then closes the connection."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            request = b""
            while b"\r\n\r\n" not in request or not request.endswith(b"}"):
                request += connection.recv(65536)
            script(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def answer(body: bytes, status: str = "200 OK") -> bytes:
    """A whole answer."""
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def send(
    script: Script, *, stream: bool, rows: Rows | None = None, status: int = 200, leave_after: int | None = None
) -> Rows:
    """What Locust is told of one request whose answer should have three tokens."""
    rows = [] if rows is None else rows
    body = {"stream": stream}
    ask = Ask(row="r", path="/predict", body=body, tokens=3, status=status, leave_after=leave_after)
    with following(script) as url:
        client = Client(url, lambda **row: rows.append(row))
        client.send(ask)
        client.close()
    return rows

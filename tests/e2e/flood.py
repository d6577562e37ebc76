"""Bodies without bound, sent to a real server by several clients at once: what each is told, and what that costs it."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

PIECE = b" " * 2**16
PIECES = 400 * 2**20 // len(PIECE)
CLIENTS = 4


def peak_bytes(pid: int) -> int:
    """The most memory that a process has ever held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def flood(url: str, path: str, *, chunked: bool) -> set[int]:
    """The statuses that clients are told that each send 400 MiB, with its length or without."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        return set(pool.map(lambda _: _status(url, _request(path, chunked=chunked)), range(CLIENTS)))


def _request(path: str, *, chunked: bool) -> Iterator[bytes]:
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {PIECES * len(PIECE)}"
    yield f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{length}\r\n\r\n".encode()
    for _ in range(PIECES):
        yield b"%x\r\n%b\r\n" % (len(PIECE), PIECE) if chunked else PIECE
    yield b"0\r\n\r\n" if chunked else b""


def _status(url: str, pieces: Iterator[bytes]) -> int:
    """Read all the while: what has come before the connection is reset counts."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port or 80), timeout=120) as client:
        sender = threading.Thread(target=_send, args=(client, pieces))
        sender.start()
        said = client.recv(65536)
        with suppress(OSError):  # the other side was first
            client.shutdown(socket.SHUT_RDWR)
        sender.join()
    return int(said.split()[1])


def _send(client: socket.socket, pieces: Iterator[bytes]) -> None:
    with suppress(OSError):  # it is told, and let go
        for piece in pieces:
            client.sendall(piece)

"""A case, the list of all cases, and how a case asks the server."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

TIMEOUT_S = 120.0


class NotHere(Exception):
    """The case says nothing about this server: another model, other settings."""


@dataclass(frozen=True)
class Asker:
    """A server's address, and the ways to ask it."""

    url: str
    key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """`body` is sent as JSON; bytes or text as they are."""
        payload = {"content": body} if isinstance(body, bytes | str) else {"json": body}
        return self.request("POST", path, **payload, **options)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Whatever the status; no redirect is followed and no proxy is used."""
        headers = self.headers | dict(options.pop("headers", {}))
        with httpx.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=False) as client:
            return client.request(method, path, headers=headers, **options)

    def raw(self, request: bytes) -> bytes:
        """All bytes that come back for these bytes, until the server closes."""
        place = urlsplit(self.url)
        with socket.create_connection((place.hostname, place.port or 80), timeout=TIMEOUT_S) as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def completion(self, prompt: Any, **parameters: Any) -> Any:
        """The answer of `/v1/completions`, greedy and 8 tokens unless told otherwise; asserts that it is one."""
        body = {"prompt": prompt, "max_tokens": 8, "temperature": 0} | parameters
        answer = self.post("/v1/completions", body)
        assert answer.status_code == httpx.codes.OK, answer.text
        return answer.json()

    def error(self, path: str, body: Any, status: int) -> Any:
        """The error that this POST is refused with; asserts its status and shape."""
        answer = self.post(path, body)
        return error_of(answer, status)

    @property
    def model(self) -> str:
        return str(self.get("/v1/models").json()["data"][0]["id"])

    def require_model(self, name: str) -> None:
        if self.model != name:
            raise NotHere(f"the model is not {name}")


def error_of(answer: httpx.Response, status: int) -> Any:
    """The error in an answer; asserts its status, type and shape."""
    assert answer.status_code == status, f"{answer.status_code} instead of {status}: {answer.text[:500]}"
    error = answer.json()["error"]
    assert set(error) == {"type", "message", "param", "code"}, error
    return error


Check = Callable[[Asker], None]
CASES: list[Check] = []
"""All cases of the modules that were imported, in order of definition. A case's name is a sentence."""


def case(check: Check) -> Check:
    """Make a function one of the cases."""
    CASES.append(check)
    return check

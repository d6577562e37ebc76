"""Faults to order: which calls fail, how, and how often."""

import fnmatch
import threading
from dataclasses import dataclass

from tests.kube.errors import StatusError


class Disconnect(Exception):
    """Close the connection without an answer."""


@dataclass
class Fault:
    """One rule: the next `times` calls that fit get `answer`, after `skip` that pass."""

    answer: int | str
    """An HTTP status, or `disconnect`."""
    method: str = "*"
    path: str = "*"
    """A shell pattern on the path without its query."""
    watch: bool | None = None
    """Only watches, only calls that are none, or both."""
    times: int = 1
    skip: int = 0
    retry_after_s: int | None = None
    message: str = ""


class Faults:
    """All rules of one server, and what they hit."""

    def __init__(self) -> None:
        self.rules: list[Fault] = []
        self.hits: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def add(self, answer: int | str, **rest: object) -> None:
        self.rules.append(Fault(answer, **rest))  # type: ignore[arg-type]

    def strike(self, method: str, path: str, *, watch: bool) -> None:
        """Raise what the first fitting rule orders."""
        fault = self._take(method, path, watch)
        if fault is None:
            return
        self.hits.append((method, path))
        if fault.answer == "disconnect":
            raise Disconnect
        raise refusal(int(fault.answer), fault, method, path)

    def _take(self, method: str, path: str, watch: bool) -> Fault | None:
        with self._lock:
            for fault in self.rules:
                fits = fault.method in ("*", method) and fnmatch.fnmatch(path, fault.path)
                if not fits or fault.watch not in (None, watch) or fault.times == 0:
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None


REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    409: "Conflict",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}


def refusal(code: int, fault: Fault, method: str, path: str) -> StatusError:
    """The answer of one rule, worded as the server words it where it matters."""
    texts = {403: f'User "tester" cannot {method} {path}', 429: "too many requests", 503: "apiserver not ready"}
    text = fault.message or texts.get(code, f"injected {code}")
    return StatusError(code, REASONS.get(code, "Unknown"), text, retry_after_s=fault.retry_after_s)

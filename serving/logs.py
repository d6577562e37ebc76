"""The one place where logging is set up: readable lines or JSON, each with the process's place and the request's id.

What clients send is never logged: inside a request an exception is shown with its type and its frames, without its
text, which may quote a prompt. Addresses are shown without credentials. Not covered: what Ray, Serve and the
interpreter's fault handler write by themselves.
"""

import json
import logging
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import TextIO

from serving.addresses import shown_in

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that the running task serves; set once it has an id, None outside of any."""

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def set_up(place: str, *, rank: int | None = None, as_json: bool = False, stream: TextIO | None = None) -> None:
    """Log everything of this project from INFO on to `stream`, standard error if none is given.

    `place` names the process: "gateway", "supervisor"; `rank` is given for a rank. Another call replaces the first.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(place, rank) if as_json else ReadableLines(place, rank))
    ours = logging.getLogger("serving")
    ours.handlers[:] = [handler]
    ours.setLevel(logging.INFO)
    ours.propagate = False


def show_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What ends a command, as the interpreter itself would show it, but no address with its credentials."""
    sys.stderr.write(shown_in("".join(traceback.format_exception(kind, error, trace))))


class _Discreet(logging.Formatter):
    """Knows where it is, and keeps what a request holds to itself."""

    def __init__(self, place: str, rank: int | None) -> None:
        super().__init__()
        self.place = place
        self.rank = rank

    def message(self, record: logging.LogRecord) -> str:
        """What was said, and below it the exception and the stack, if any."""
        parts = [record.getMessage()]
        if record.exc_info:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(record.stack_info)
        return shown_in("\n".join(parts))

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802  logging's name
        """As usual outside a request; inside one without the texts of the exception and its causes."""
        if request_id.get() is None or ei[1] is None:
            return super().formatException(ei)
        return "\n".join(_without_texts(ei[1]))


class ReadableLines(_Discreet):
    """`2026-01-31T12:00:00.000Z INFO rank 0 [request id] logger: message`."""

    def format(self, record: logging.LogRecord) -> str:
        place = self.place if self.rank is None else f"rank {self.rank}"
        request = f" [{id_}]" if (id_ := request_id.get()) is not None else ""
        return f"{_time(record)} {record.levelname} {place}{request} {record.name}: {self.message(record)}"


class JsonLines(_Discreet):
    """One object a line, always of the same keys; rank and request_id are null outside of one."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": self.message(record),
            "place": self.place,
            "rank": self.rank,
            "request_id": request_id.get(),
        }
        return json.dumps(fields)


def _time(record: logging.LogRecord) -> str:
    """In UTC, to the millisecond."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _without_texts(error: BaseException) -> list[str]:
    """An exception and what led to it, the first cause first: frames, which quote this program only, and types."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    before = _without_texts(cause) if cause is not None else []
    frames = "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    return [*before, "Traceback (most recent call last):", frames, type(error).__qualname__]

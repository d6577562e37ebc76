"""The one place where exceptions become HTTP: status, headers, JSON shape, and a stream that has already begun."""

import logging
import math
from collections.abc import Callable

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.answers import ErrorAnswer, ErrorDetail
from serving.api.events import AFTER_COMMENT, COMMENT, HEADERS, sse
from serving.errors import (
    BodyTooLarge,
    BodyTooSlow,
    CallerError,
    DeadlineExceeded,
    Forbidden,
    GangwayError,
    GroupUnavailable,
    InvalidRequest,
    LaterError,
    NotFound,
    OverLimit,
    QueueFull,
    RequestBreaksGroup,
    Unauthorized,
)
from serving.logs import request_id

log = logging.getLogger(__name__)

STATUSES: dict[type[GangwayError], tuple[int, str]] = {
    InvalidRequest: (400, "invalid_request_error"),
    NotFound: (404, "not_found_error"),
    Unauthorized: (401, "authentication_error"),
    Forbidden: (403, "permission_error"),
    BodyTooSlow: (408, "timeout_error"),
    BodyTooLarge: (413, "invalid_request_error"),
    QueueFull: (429, "rate_limit_error"),
    OverLimit: (429, "rate_limit_error"),
    GroupUnavailable: (503, "unavailable_error"),
    DeadlineExceeded: (504, "timeout_error"),
    RequestBreaksGroup: (500, "internal_error"),
}
"""Error -> status and `error.type`. A deadline that passed while the request still waited is 408."""


class ClientGone(Exception):
    """The client went away; there is nobody to answer."""


def translate(error: Exception) -> tuple[int, dict[str, str], ErrorAnswer]:
    """Status, headers and body for an exception. Only what was raised on purpose shows its message."""
    if isinstance(error, HTTPException):
        return error.status_code, dict(error.headers or {}), _answer("invalid_request_error", error.detail)
    if not isinstance(error, CallerError | LaterError):
        return 500, {}, _answer("internal_error", "an error inside the server; its log has the details")
    status, kind = STATUSES[type(error)]
    if error.code == "queue_timeout":
        status = 408
    headers = {}
    if isinstance(error, QueueFull | OverLimit | GroupUnavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, BodyTooLarge | BodyTooSlow):
        headers["Connection"] = "close"  # else the server would take in and throw away what still comes, for ever
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RequestBreaksGroup):
        headers["x-should-retry"] = "false"  # OpenAI's clients ask again after any other 500
    param = error.param if isinstance(error, CallerError) else None
    return status, headers, _answer(kind, str(error), param, error.code)


def _answer(kind: str, message: str, param: str | None = None, code: str | None = None) -> ErrorAnswer:
    return ErrorAnswer(error=ErrorDetail(type=kind, message=message, param=param, code=code))


async def hand_on(request: Request, error: Exception) -> Response:
    """Keep Starlette from answering a 404 or 405 in its own words: the boundary does."""
    if isinstance(error, HTTPException) and error.status_code == 404:
        raise NotFound("no such route; GET /openapi.json lists them", code="route_not_found")
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        raise HTTPException(405, f"{request.method} is not allowed here; use {allowed}", error.headers)
    raise error


class ErrorBoundary:
    """ASGI middleware around everything."""

    def __init__(self, app: ASGIApp, answered: Callable[[int, ErrorDetail], None] | None = None) -> None:
        """`answered`: told the status and the body of each error that a client is answered."""
        self._app = app
        self._answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun: list[Message] = []  # the first message, and the last
        request_id.set(None)  # until the request is accepted as one

        async def watched(message: Message) -> None:
            begun[1:] = [message]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientGone:
            log.debug("%s: the client went away", scope["path"])
        except Exception as error:
            await self._respond(error, begun, scope, receive, send)

    async def _respond(
        self, error: Exception, begun: list[Message], scope: Scope, receive: Receive, send: Send
    ) -> None:
        status, headers, answer = translate(error)
        if status == 500 and not isinstance(error, GangwayError):
            log.exception("%s failed", scope["path"], exc_info=error)
        if self._answered is not None:
            self._answered(status, answer.error)
        if not begun:
            body = msgspec.json.encode(answer)
            await Response(body, status, headers, "application/json")(scope, receive, send)
        elif HEADERS[0] in begun[0]["headers"]:
            between = AFTER_COMMENT if begun[-1].get("body") == COMMENT else b""
            await send({"type": "http.response.body", "body": between + sse(answer), "more_body": False})
        else:
            raise error

"""Bodies to checked fields, and complaints to sentences that name the field. Content types are not looked at.

What a body costs is bounded whatever is in it: its bytes, the time that it takes to come, and its complaints.
"""

import asyncio
import difflib
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from serving.api.errors import ClientGone
from serving.api.schema import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Fields,
    PredictParameters,
    PredictRequest,
    StreamOptions,
    TextFormat,
    TextPart,
)
from serving.config import HttpConfig
from serving.errors import BodyTooLarge, BodyTooSlow, InvalidRequest

F = TypeVar("F", bound=Fields)

_READ_ON = 4
"""A body over the limit is read on and thrown away up to that many times it: a client still sending sees no answer."""
_MAX_DIGITS = 18
"""Of a declared length; Python refuses to read a number of thousands of digits."""
_MAX_FAULTS = 1000
"""With more faults than that nobody is told of each: pydantic needs half a kilobyte to describe one."""
_SHOWN_CHARACTERS = 100
"""Of a field's name that the caller has made up."""
_SHAPES = {
    "prompt": "must be a string, a list of strings, a list of token ids, or a list of lists of token ids",
    "input": "must be a string, a list of strings, a list of token ids, or a list of lists of token ids",
    "inputs": "must be a string, or a list of strings and chats (a chat is a list of messages)",
    "stop": "must be a string or a list of strings",
    "content": "must be a string or a list of text parts",
}
"""What a field with several shapes takes."""
_MODELS: tuple[type[Fields], ...] = (
    PredictRequest,
    PredictParameters,
    CompletionRequest,
    EmbeddingRequest,
    ChatRequest,
    ChatMessage,
    TextPart,
    StreamOptions,
    TextFormat,
)
_NAMES = frozenset(name for model in _MODELS for name in model.model_fields)


async def read(request: Request, model: type[F], http: HttpConfig) -> F:
    """The body, checked against `model`. Raises `BodyTooLarge`, `BodyTooSlow`, `InvalidRequest`, or `ClientGone`."""
    try:
        async with asyncio.timeout(http.body_timeout_s):
            body = await _read_body(request, http.max_body_bytes)
    except TimeoutError:
        late = f"the body did not come to its end within {http.body_timeout_s:g} s"
        raise BodyTooSlow(late, code="body_timeout") from None
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > _MAX_FAULTS:
            raise InvalidRequest(f"the body has {error.error_count()} faults, too many to name one") from None
        raise _complaint(error.errors(include_url=False, include_input=False), model) from None


async def _read_body(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    body, size = bytearray(), 0
    too_large = declared.isdecimal() and (len(declared) > _MAX_DIGITS or int(declared) > limit)
    try:
        async for chunk in request.stream():
            size += len(chunk)
            too_large = too_large or size > limit
            if not too_large:
                body += chunk
            elif size > _READ_ON * limit:
                break
    except ClientDisconnect as error:
        raise ClientGone from error
    if too_large:
        raise BodyTooLarge(f"the body is over the limit of {limit} bytes", code="body_too_large")
    return bytes(body)


def _complaint(errors: list[ErrorDetails], model: type[Fields]) -> InvalidRequest:
    """The complaint that helps most: of a value out of bounds rather than of a shape that was not meant."""
    telling = [error for error in errors if not error["type"].endswith("_type")]
    error = max(telling, key=lambda error: len(error["loc"])) if telling else errors[0]
    if error["type"] == "json_invalid":
        reason = error["msg"].removeprefix("Invalid JSON: ")
        return InvalidRequest(f"the body is not valid JSON: {reason}", code="invalid_json")
    path = _path(error)
    if not path:
        return InvalidRequest("the body must be a JSON object")
    param = ".".join(path)
    return InvalidRequest(f"{param}: {_sentence(error, path, model, ambiguous=not telling)}", param=param)


def _path(error: ErrorDetails) -> list[str]:
    """The fields and places on the way, without pydantic's names for the branches of a union."""
    *way, last = error["loc"] or ("",)
    path = [str(part) for part in way if isinstance(part, int) or part in _NAMES]
    if last and (isinstance(last, int) or last in _NAMES or error["type"] == "extra_forbidden"):
        path.append(str(last)[:_SHOWN_CHARACTERS])
    return path


def _sentence(error: ErrorDetails, path: list[str], model: type[Fields], *, ambiguous: bool) -> str:
    kind, name = error["type"], path[-1]
    if kind == "extra_forbidden":
        return f"unknown field{_nearest(name, model, path)}"
    if kind == "missing":
        return "is required"
    field = next((part for part in reversed(path) if not part.isdecimal()), name)
    if ambiguous and field in _SHAPES:
        return _SHAPES[field]
    if kind == "none_required":
        return "is not supported; leave it out"
    return error["msg"].replace("Input should be", "must be", 1)


def _nearest(unknown: str, model: type[Fields], path: list[str]) -> str:
    known = list(_model_at(path[:-1], model).model_fields)
    near = difflib.get_close_matches(unknown, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"


def _model_at(path: list[str], model: type[Fields]) -> type[Fields]:
    inner: dict[str, type[Fields]] = {
        "parameters": PredictParameters,
        "messages": ChatMessage,
        "inputs": ChatMessage,
        "content": TextPart,
        "stream_options": StreamOptions,
        "response_format": TextFormat,
    }
    for part in path:
        model = inner.get(part, model)
    return model


def param_error(param: str, message: str, code: str | None = None) -> InvalidRequest:
    """A complaint about one field."""
    return InvalidRequest(f"{param}: {message}", param=param, code=code)


def given(**fields: Any) -> dict[str, Any]:
    """Those that are not null, which is the same as absent."""
    return {name: value for name, value in fields.items() if value is not None}

"""Bodies to checked fields, and complaints to sentences that name the field. Content types are not looked at.

What a body costs is bounded whatever is in it: its bytes, the time that it takes to come, and its complaints.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from serving.api import bounds
from serving.api.complaints import complaint
from serving.api.errors import ClientGone
from serving.api.ids import take_out
from serving.api.neutral import Fields
from serving.config import HttpConfig
from serving.errors import BodyTooLarge, BodyTooSlow, InvalidRequest

F = TypeVar("F", bound=Fields)

_ON_LOOP_BYTES = 16 * 1024
"""Longer bodies are checked in a thread; a shorter one costs less than 5 ms, whatever is in it."""
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bodies")
_MAX_DIGITS = 18
"""Of a declared length; Python refuses to read a number of thousands of digits."""
_MAX_FAULTS = 1000
"""With more faults than that nobody is told of each: pydantic needs half a kilobyte to describe one."""


async def read(request: Request, model: type[F], http: HttpConfig) -> F:
    """The body, checked against `model`. Raises `BodyTooLarge`, `BodyTooSlow`, `InvalidRequest`, or `ClientGone`."""
    try:
        async with asyncio.timeout(http.body_timeout_s):
            body = await _read_body(request, http.max_body_bytes)
    except TimeoutError:
        late = f"the body did not come to its end within {http.body_timeout_s:g} s"
        raise BodyTooSlow(late, code="body_timeout") from None
    if len(body) <= _ON_LOOP_BYTES:
        return _checked(body, model)
    return await asyncio.get_running_loop().run_in_executor(_thread, _checked_large, body, model)


def _checked_large(body: bytes, model: type[F]) -> F:
    """Nothing here holds the interpreter for long: what is counted, read in slices or bounded."""
    small, ids = take_out(body) if _takes_ids(model) else (body, {})
    bounds.check(small)
    return _checked(small, model).model_copy(update=ids)


def _takes_ids(model: type[Fields]) -> bool:
    return not {"prompt", "input"}.isdisjoint(model.model_fields)


def _checked(body: bytes, model: type[F]) -> F:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > _MAX_FAULTS:
            raise InvalidRequest(f"the body has {error.error_count()} faults, too many to name one") from None
        raise complaint(error.errors(include_url=False, include_input=False), model) from None


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
            elif size > bounds.READ_ON * limit:
                break
    except ClientDisconnect as error:
        raise ClientGone from error
    if too_large:
        raise BodyTooLarge(f"the body is over the limit of {limit} bytes", code="body_too_large")
    return bytes(body)


def param_error(param: str, message: str, code: str | None = None) -> InvalidRequest:
    """A complaint about one field."""
    return InvalidRequest(f"{param}: {message}", param=param, code=code)


def given(**fields: Any) -> dict[str, Any]:
    """Those that are not null, which is the same as absent."""
    return {name: value for name, value in fields.items() if value is not None}

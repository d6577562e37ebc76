"""Prompts of very many token ids, read in slices: pydantic would take a tenth of a second for a body full of them."""

from collections.abc import Iterator
from typing import Annotated

import msgspec

from serving.api.bounds import LIMITS, SLICE_BYTES
from serving.errors import InvalidRequest
from serving.messages import TokenId

STAND_IN = b"[0]"
"""What is checked in the place of ids that were taken out."""

Ids = list[TokenId] | list[list[TokenId]]

_read_ids = msgspec.json.Decoder(list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]]).decode
_read_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _Prompts(msgspec.Struct):
    """The fields that take token ids, unread; whatever else there is, is passed over."""

    prompt: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_read_prompts = msgspec.json.Decoder(_Prompts).decode


def take_out(body: bytes) -> tuple[bytes, dict[str, Ids]]:
    """A body with `STAND_IN` for ids, and the ids by their field. Raises `InvalidRequest` when they are none.

    Texts are left where they are, and so is whatever is short: the same few numbers may stand elsewhere too.
    """
    try:
        prompts = _read_prompts(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body, {}  # the handler that reads it whole reports what is wrong
    taken: dict[str, Ids] = {}
    for name in ("prompt", "input"):
        raw = getattr(prompts, name)
        text = b"" if raw is msgspec.UNSET else bytes(raw)
        if len(text) > SLICE_BYTES and text.startswith(b"[") and b'"' not in text:
            taken[name] = _ids(text, name)
            body = body.replace(text, STAND_IN)
    return body, taken


def _ids(text: bytes, param: str) -> Ids:
    lists = text.count(b"[")
    if lists > LIMITS.lists:
        raise InvalidRequest(f"{param}: must have at most {LIMITS.lists} entries", param=param)
    try:
        if lists == 1:
            return [token for part in _parts(text) for token in _read_ids(part)]
        return [[token for part in _parts(bytes(raw)) for token in _read_ids(part)] for raw in _read_list(text)]
    except msgspec.DecodeError:
        told = f"{param}: must be a list of token ids, or a list of such lists; a token id is a whole number under 2^31"
        raise InvalidRequest(told, param=param) from None


def _parts(text: bytes) -> Iterator[bytes]:
    """A list of numbers as several, of about `SLICE_BYTES` each."""
    start = 0
    while (end := text.find(b",", start + SLICE_BYTES)) != -1:
        yield b"[" * (start > 0) + text[start:end] + b"]"
        start = end + 1
    yield b"[" * (start > 0) + text[start:]

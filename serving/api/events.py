"""The bytes of server-sent events. Readers split lines at LF, CR or both; some, wrongly, wherever Unicode does.

Inside JSON no byte of a text needs to stand as it is, so what Unicode takes for the end of a line is escaped.
"""

import msgspec

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"
COMMENT = b": waiting\n\n"
"""Says nothing, and keeps whatever is between from giving the connection up."""
AFTER_COMMENT = b":\n\n"
"""Goes before the first event after a comment. vLLM's benchmark strips each chunk that it reads, and so would take a
comment and the event after it for one."""

_LINE_ENDS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))
"""Those that JSON leaves alone, as UTF-8 and escaped."""
_encode = msgspec.json.Encoder().encode


def sse(event: msgspec.Struct) -> bytes:
    """One event's bytes."""
    data = _encode(event)
    for raw, escaped in _LINE_ENDS:
        data = data.replace(raw, escaped)
    return b"data: " + data + b"\n\n"

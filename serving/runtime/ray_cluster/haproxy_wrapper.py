"""Stands between Ray Serve and haproxy: `python haproxy.py BINARY EDGE ARGUMENTS...`, run as a script.

What Serve leaves open: haproxy listens where the server was told to, and only there, and its statistics and the
replicas on loopback; a client may not take as long as it likes over its headers; idle clients are not reckoned with as
if they had asked; bodies are bounded before anything behind holds them; every error has this project's shape,
wherever it arises; and a haproxy does not outlive the actor that started it when that is killed.
Needs nothing but the standard library, and becomes haproxy itself in the end.
"""

import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: the signal that this process gets when its parent dies; kept across exec."""

ANY_INTERFACE = re.compile(r"^(\s*bind )\*?:", re.MULTILINE)
FRONT = re.compile(r"^frontend http_frontend\n\s+bind .*$", re.MULTILINE)

HEADERS_S = 10
"""Longest a client may take over a request's headers, from its first byte on; then it is answered 408 and let go.
haproxy has no limit of its own, and `timeout client` starts over with every byte."""

DEFAULTS = re.compile(r"^defaults$", re.MULTILINE)
GLOBAL = re.compile(r"^global$", re.MULTILINE)

OWN_FAULTS = re.compile(r"^\s*errorfile .*\n", re.MULTILINE)
PLAIN_FAULT = re.compile(
    r'(http-request return status [45]\d\d) content-type text/plain (?:lf-)?string "(?:[^"\\]|\\.)*"'
)

FAULTS = {
    400: ("invalid_request_error", "the request is not valid HTTP", "malformed_request"),
    403: ("permission_error", "the request is not allowed", None),
    404: ("not_found_error", "no such route", "route_not_found"),
    405: ("invalid_request_error", "this method is not allowed here", None),
    408: ("timeout_error", "the request did not come to its end in time", "request_timeout"),
    413: ("invalid_request_error", "the body is over the limit", "body_too_large"),
    429: ("rate_limit_error", "there are more requests than can wait", None),
    500: ("internal_error", "an error inside the server; its log has the details", None),
    501: ("invalid_request_error", "the request asks for what this server does not do", None),
    502: ("unavailable_error", "the gateway has broken off its answer", "gateway_gone"),
    503: ("unavailable_error", "the gateway does not answer, or more requests wait than it takes", "gateway_gone"),
    504: ("timeout_error", "the gateway has not answered in time", None),
}
"""Status -> type, message and code of the error that haproxy answers, and puts in the place of any that is not JSON."""
LATER = {429, 502, 503}
RETRY_AFTER_S = 5

BUILT_IN = {
    400: ("Bad Request", "invalid_request_error", "not HTTP or headers over 15 kB"),
    408: ("Request Timeout", "timeout_error", "the request did not come to its end in time"),
    500: ("Internal Server Error", "internal_error", "an error inside the proxy"),
    501: ("Not Implemented", "invalid_request_error", "this server does not do that"),
}
"""Status -> reason, type and message of what haproxy says before there is a request, which no setting reaches."""

ADAPTED = "# adapted by gangway\n"
"""First line of a file that was."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What haproxy is told besides what Serve tells it."""

    addresses: Sequence[str]
    """IP addresses to listen on."""
    port: int
    requests: int
    """That are passed on at once. Those beyond wait, and then get an error."""
    max_body_bytes: int
    body_timeout_s: float
    """For as much of a body as haproxy holds before it passes the request on."""

    def write(self, path: Path) -> None:
        """Into a file for `read`."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Edge":
        """What `write` wrote."""
        return cls(**json.loads(path.read_text()))

    def binds(self) -> str:
        """A line for each address. The one that stands for all of IPv6 takes IPv4 as well, whatever the system says."""
        lines = [f"    bind {at(address, self.port)}" + " v4v6" * (address == "::") for address in self.addresses]
        return "\n".join(lines)


def at(address: str, port: int) -> str:
    """Address and port as one writes them in a URL."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def patience_bounded(config: str) -> str:
    """The haproxy configuration with `timeout http-request`, unless it has one."""
    if "timeout http-request" in config:
        return config
    return DEFAULTS.sub(f"defaults\n    timeout http-request {HEADERS_S}s", config)


def idle_welcome(config: str, requests: int) -> str:
    """The haproxy configuration with so many requests passed on at once; those beyond wait, and then get an error.

    Without that limit every client is reckoned with as if it had asked, which takes two files and more, and so idle
    ones are few; the check of that reckoning (strict-limits) goes with it.
    """
    config = GLOBAL.sub("global\n    no strict-limits", config)
    return DEFAULTS.sub(f"defaults\n    default-server maxconn {requests}", config)


def listening_as_told(config: str, edge: Edge) -> str:
    """The haproxy configuration with its frontend on the addresses of `edge`, and its statistics on loopback."""
    config = ANY_INTERFACE.sub(r"\g<1>127.0.0.1:", config)
    return FRONT.sub(lambda _: f"frontend http_frontend\n{edge.binds()}", config)


def bodies_bounded(config: str, edge: Edge) -> str:
    """The haproxy configuration that refuses a body whose length is too large, on any route and from any client.

    A short one, or the beginning of a long one, has to be there before a request takes one of the gateway's places.
    What a client could tell Serve by headers (a time limit, not to look whether it has gone) it does not get to tell.
    """
    rules = (
        f"deny deny_status 413 if {{ req.hdr_val(content-length) gt {edge.max_body_bytes} }}",
        f"wait-for-body time {max(1, round(edge.body_timeout_s * 1000))}ms",
        "del-header x-request-timeout-seconds",
        "del-header x-request-disconnect-disabled",
        "del-header upgrade",
    )
    lines = "".join(f"    http-request {rule}\n" for rule in rules)
    return FRONT.sub(lambda front: f"{front[0]}\n{lines.rstrip()}", config)


def faults_in_one_shape(config: str) -> str:
    """The haproxy configuration whose errors, and those of Serve behind it, are JSON as the gateway's own are."""
    config = PLAIN_FAULT.sub(r"\1 default-errorfiles", OWN_FAULTS.sub("", config))
    texts = "".join(f"\n    {_http_error(status)}" for status in FAULTS)
    json_already = "{ res.hdr(content-type) -m beg application/json }"
    replaced = "".join(
        f"\n    http-response return status {status} default-errorfiles if {{ status {status} }} !{json_already}"
        for status in FAULTS
    )
    config = DEFAULTS.sub(lambda _: f"defaults{texts}", config)
    return FRONT.sub(lambda front: f"{front[0]}{replaced}", config)


def _http_error(status: int) -> str:
    kind, message, code = FAULTS[status]
    text = _quoted(_error(kind, message, code))
    later = f" hdr Retry-After {RETRY_AFTER_S}" if status in LATER else ""
    return f"http-error status {status} content-type application/json{later} string {text}"


def _error(kind: str, message: str, code: str | None) -> str:
    error = {"type": kind, "message": message, "param": None, "code": code}
    return json.dumps({"error": error}, separators=(",", ":"))


def _quoted(text: str) -> str:
    """As haproxy reads it in double quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def speaking_json(program: bytes) -> bytes:
    """haproxy, with the built-in answers to what is no request replaced by JSON of the same length.

    It answers these before there is a request, so that neither `errorfile` nor `http-error` counts. One that is not
    found just once, or has too little room, stays.
    """
    for status in BUILT_IN:
        found = re.findall(rb"HTTP/1\.1 %d [^\0]*?\r\n\r\n<html>[^\0]*\0" % status, program)
        if len(found) == 1 and (answer := _built_in(status, len(found[0]) - 1)) is not None:
            program = program.replace(found[0], answer + b"\0")
    return program


def _built_in(status: int, size: int) -> bytes | None:
    """The answer in exactly `size` bytes, spaces at its end; None if it has more."""
    reason, kind, message = BUILT_IN[status]
    body = _error(kind, message, None)
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type:application/json\r\nConnection:close\r\nContent-Length:"
    room = size - len(f"{head}000\r\n\r\n")
    return f"{head}{room:03d}\r\n\r\n{body:<{room}}".encode() if room >= len(body) else None


def adapted(config: str, edge: Edge) -> str:
    """All of the above that is about the configuration, once. The rules stand below the frontend's addresses."""
    if config.startswith(ADAPTED):
        return config
    config = idle_welcome(patience_bounded(config), edge.requests)
    return ADAPTED + listening_as_told(bodies_bounded(faults_in_one_shape(config), edge), edge)


def main(binary: str, edge: str, *arguments: str) -> None:
    """Adapt the configuration that is among the arguments, tie this process to its parent, and become haproxy.

    Without splicing (-dS), as the pipes for it are files as well.
    """
    for path in map(Path, arguments):
        if path.suffix == ".cfg":
            path.write_text(adapted(path.read_text(), Edge.read(Path(edge))))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, "-dS", *arguments])  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main(*sys.argv[1:])

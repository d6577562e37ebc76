"""Stands between Ray Serve and haproxy: `python haproxy.py BINARY EDGE ARGUMENTS...`, run as a script.

What Serve leaves open: haproxy listens where the server was told to, and only there, and its statistics and the
replicas on loopback; a client may not take as long as it likes over its headers; idle clients are not reckoned with as
if they had asked; bodies are bounded before anything behind holds them; every error has this project's shape, whoever
makes it; and a haproxy does not outlive the actor that started it when that is killed.
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
haproxy has no limit of its own, and `timeout client` begins anew with every byte."""

DEFAULTS = re.compile(r"^defaults$", re.MULTILINE)
GLOBAL = re.compile(r"^global$", re.MULTILINE)

MENDED = "# mended\n"
"""First line of a file that was."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What haproxy is told besides what Serve tells it."""

    addresses: Sequence[str]
    """IP addresses to listen on."""
    port: int
    requests: int
    """That are passed on at once. Those beyond wait, and then get an error."""

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


def mended(config: str, edge: Edge) -> str:
    """All of the above, once."""
    if config.startswith(MENDED):
        return config
    return MENDED + idle_welcome(patience_bounded(listening_as_told(config, edge)), edge.requests)


def main(binary: str, edge: str, *arguments: str) -> None:
    """Mend the configuration that is among the arguments, tie this process to its parent, and become haproxy.

    Without splicing (-dS), as the pipes for it are files as well.
    """
    for path in map(Path, arguments):
        if path.suffix == ".cfg":
            path.write_text(mended(path.read_text(), Edge.read(Path(edge))))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, "-dS", *arguments])  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main(*sys.argv[1:])

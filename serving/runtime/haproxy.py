"""Stands between Ray Serve and haproxy: `python haproxy.py BINARY REQUESTS ARGUMENTS...`, run as a script.

Four things that Serve leaves open: its statistics would listen on every interface without asking who comes, a client
may take as long as it likes over its headers, idle clients are few as each is reckoned with as if it had asked, and a
haproxy outlives the actor that started it when that is killed.
Needs nothing but the standard library, and becomes haproxy itself in the end.
"""

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: the signal that this process gets when its parent dies; kept across exec."""

ANY_INTERFACE = re.compile(r"^(\s*bind )\*?:", re.MULTILINE)

HEADERS_S = 10
"""Longest a client may take over a request's headers, from its first byte on; then it is answered 408 and let go.
haproxy has no limit of its own, and `timeout client` begins anew with every byte."""

DEFAULTS = re.compile(r"^defaults$", re.MULTILINE)
GLOBAL = re.compile(r"^global$", re.MULTILINE)


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
    if "no strict-limits" in config:
        return config
    config = GLOBAL.sub("global\n    no strict-limits", config)
    return DEFAULTS.sub(f"defaults\n    default-server maxconn {requests}", config)


def loopback_only(config: str) -> str:
    """The haproxy configuration with every bind to all interfaces turned into one to this machine."""
    return ANY_INTERFACE.sub(r"\g<1>127.0.0.1:", config)


def mended(config: str, requests: int) -> str:
    """All of the above."""
    return idle_welcome(patience_bounded(loopback_only(config)), requests)


def main(binary: str, requests: str, *arguments: str) -> None:
    """Mend the configuration that is among the arguments, tie this process to its parent, and become haproxy.

    Without splicing (-dS), as the pipes for it are files as well.
    """
    for path in map(Path, arguments):
        if path.suffix == ".cfg":
            path.write_text(mended(path.read_text(), int(requests)))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, "-dS", *arguments])  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main(*sys.argv[1:])

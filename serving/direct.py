"""This machine's own addresses are asked directly, whatever proxy the environment names (HTTP_PROXY and the like).

A proxy elsewhere cannot reach them: the loopback that it knows is its own. For all others the environment counts, as
does what else httpx reads there (certificates).
"""

import socket
from urllib.parse import urlsplit

import psutil

from serving.config import is_loopback


def direct(url: str) -> dict[str, None]:
    """`mounts` for a client of httpx that asks `url` and what is beneath it."""
    return dict.fromkeys(("http://", "https://", "all://")) if _is_own(url) else {}


def _is_own(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:  # no URL: the client that asks it says so
        return False
    return is_loopback(host) or host == socket.gethostname().lower() or host in _addresses()


def _addresses() -> set[str]:
    """Of this machine's interfaces; an IPv6 scope such as `%eth0` is cut off."""
    entries = [entry for entries in psutil.net_if_addrs().values() for entry in entries]
    return {entry.address.partition("%")[0].lower() for entry in entries}

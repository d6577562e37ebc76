"""Where HAProxy listens, as Serve sets it up and this project adapts it: what was asked for, and nothing beside it."""

import socket
from pathlib import Path

import httpx
import psutil
import pytest

from serving.config import Config
from tests.api.conftest import listening
from tests.fake_engine import fake_group
from tests.gateway.conftest import make_config
from tests.runtime.test_hostile_clients import proxy

has_ipv6 = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="IPv6 is off on this machine")


def on(host: str) -> Config:
    return make_config(f"http.host={host}", "security.insecure=true")


def names(host: str) -> set[str]:
    """What a host name stands for, as far as this machine has it."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    here = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    return {str(place[4][0]) for place in found} & here


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("127.0.0.1", {"127.0.0.1"}),
        ("0.0.0.0", {"0.0.0.0"}),
        ("127.0.0.3", {"127.0.0.3"}),
        pytest.param("::1", {"::1"}, marks=has_ipv6),
        pytest.param("::", {"::"}, marks=has_ipv6),
        ("localhost", names("localhost")),
    ],
)
def test_it_listens_at_the_host_that_was_asked_for_and_its_statistics_on_loopback(
    host: str, addresses: set[str], tmp_path: Path
) -> None:
    with fake_group() as group, listening(group, on(host)) as server, proxy(tmp_path, server, on(host)) as front:
        held = [one for one in front.process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        assert {one.laddr.ip for one in held if one.laddr.port == front.port} == addresses
        assert {one.laddr.ip for one in held if one.laddr.port != front.port} == {"127.0.0.1"}
        assert len({one.laddr.port for one in held}) == 3


@has_ipv6
def test_all_of_ipv6_is_all_of_ipv4_as_well(tmp_path: Path) -> None:
    with fake_group() as group, listening(group, on("::")) as server, proxy(tmp_path, server, on("::")) as front:
        for address in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{address}:{front.port}/healthz", trust_env=False).status_code == 200

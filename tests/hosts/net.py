"""Hosts on one machine: network namespaces joined by a bridge, whose links can be cut, slow or lossy.

A host has an address, processes and a temporary folder of its own; it shares the kernel, the clock, the file system and
/dev/shm with all others. The bridge has a namespace too, where no firewall rule of the machine can drop what it
forwards. The root namespace is joined to it by one link and so reaches every host.

Everything is named for its network, whose folder holds a lock for as long as its owner lives: what a killed owner has
left behind is known by a lock that nobody holds, and is removed before the next network is made.
"""

import fcntl
import ipaddress
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Self

from tests.e2e.server import Process, eventually

RUNTIME = Path("/tmp/gw-hosts")
"""One folder for each network. Short, because the path of a Unix socket ends at 107 bytes."""
ROOT_NUMBER = 254
"""Last byte of the root namespace's address."""
FORWARDING, DISABLED = "3", "0"
"""States of a bridge's port, as the kernel numbers them."""
RELAY = Path(__file__).with_name("relay.py")
KILL_TIMEOUT_S = 30.0


class Host:
    """A namespace with one link to the bridge."""

    def __init__(self, network: str, number: int, subnet: ipaddress.IPv4Network) -> None:
        self.name = f"h{number}"
        self.namespace = f"{network}-{self.name}"
        self.address = str(subnet[number])
        self.folder = RUNTIME / network / self.name
        self._switch = _switch(network)
        self._started: list[Process] = []
        self._relay: Process | None = None

    def __repr__(self) -> str:
        return f"{self.name} at {self.address}"

    def make(self) -> None:
        self.folder.mkdir()
        run("ip", "netns", "add", self.namespace)
        run("ip", "-n", self.namespace, "link", "set", "lo", "up")
        _plug(self._switch, self.name, self.namespace, "eth0", self.address)

    def run(self, *command: str | Path, **environment: str) -> Process:
        """Start `command` on this host, with this host's folder as the one for temporary files."""
        environment = {"TMPDIR": str(self.folder)} | environment
        self._started.append(Process("ip", "netns", "exec", self.namespace, *command, **environment))
        return self._started[-1]

    def processes(self) -> list[int]:
        """Ids of all living processes on this host, of all users."""
        return _processes(self.namespace)

    def kill(self) -> None:
        """End every process at once, as a crash does; the kernel lives on and closes their connections.

        A host whose power fails says nothing to anyone: `cut` it first.
        """
        _kill(self.namespace)
        self.reap()

    def reap(self) -> None:
        """End what `run` has started and read to its end what it says."""
        if self._relay is not None:
            self._relay.kill()
        while self._started:
            self._started.pop().kill()

    def cut(self) -> None:
        """Lose every packet from and to this host in silence: its own interface stays up and shows nothing."""
        self._set_port(DISABLED)

    def join(self) -> None:
        """Undo `cut`."""
        self._set_port(FORWARDING)

    def slow(self, delay_ms: float = 0, loss_percent: float = 0) -> None:
        """Hold each packet for `delay_ms`, and lose `loss_percent` of them, on the way out and again on the way in.

        A round trip takes twice the delay. Not netem, which many kernels are built without: the host's port is taken
        off the bridge, and `relay` hands its frames to another one.
        """
        self.clear()
        wire, port = self._wire
        run("ip", "-n", self._switch, "link", "add", "name", wire, "up", "type", "veth", "peer", "name", port)
        run("ip", "-n", self._switch, "link", "set", "dev", port, "master", "bridge", "up")
        run("ip", "-n", self._switch, "link", "set", "dev", self.name, "nomaster")
        relay = sys.executable, str(RELAY), self.name, wire, str(delay_ms), str(loss_percent)
        self._relay = Process("ip", "netns", "exec", self._switch, *relay)
        self._relay.wait_for_line("relaying")

    def clear(self) -> None:
        """Undo `slow`; nothing happens to a link that is as fast as it can be."""
        if self._relay is None:
            return
        self._relay.kill()
        self._relay = None
        run("ip", "-n", self._switch, "link", "set", "dev", self.name, "master", "bridge")
        run("ip", "-n", self._switch, "link", "delete", "dev", self._wire[0])

    @property
    def _wire(self) -> tuple[str, str]:
        """The relay's own end of the way to the bridge, and the bridge's."""
        return f"{self.name}w", f"{self.name}b"

    def _set_port(self, state: str) -> None:
        run("bridge", "-n", self._switch, "link", "set", "dev", self.name, "state", state)


class Network:
    """`count` hosts, named h1, h2, …, that live until the context ends; several networks can exist at once."""

    def __init__(self, count: int) -> None:
        if not 1 <= count < ROOT_NUMBER:
            raise ValueError(f"a network has 1 to {ROOT_NUMBER - 1} hosts, not {count}")
        self.name = f"gw{uuid.uuid4().hex[:6]}"
        self.folder = RUNTIME / self.name
        self.hosts: list[Host] = []
        self.root = ""
        """The root namespace's address, once there is a network."""
        self._count = count
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        try:
            with _one_at_a_time():
                _remove_leftovers()
                self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> Host:
        """The host of that name. Raises KeyError, with the names there are."""
        hosts = {host.name: host for host in self.hosts}
        if name not in hosts:
            raise KeyError(f"no host {name}, only {', '.join(hosts)}")
        return hosts[name]

    def close(self) -> None:
        """Kill every process on every host and remove all that was made; may be called again."""
        _remove(self.name)
        for host in self.hosts:
            host.reap()
        if self._lock is not None:
            self._lock.close()

    def _make(self) -> None:
        self.folder.mkdir()
        self._lock = _try_lock(self.folder)
        subnet = _free_subnet()
        switch = _switch(self.name)
        run("ip", "netns", "add", switch)
        run("ip", "-n", switch, "link", "add", "name", "bridge", "up", "type", "bridge")
        self.root = str(subnet[ROOT_NUMBER])
        _plug(switch, "root", None, self.name, self.root)
        self.hosts = [Host(self.name, number, subnet) for number in range(1, self._count + 1)]
        for host in self.hosts:
            host.make()


def run(*command: str) -> str:
    """What the command prints. Raises RuntimeError with what it says when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@cache
def why_not() -> str | None:
    """Why hosts cannot be made here, or None when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [tool for tool in ("ip", "bridge") if shutil.which(tool) is None]:
        return f"iproute2 is not installed: no {' and no '.join(missing)}"
    veth = "link", "add", "name", "here", "type", "veth", "peer", "name", "there"
    return _refusal(
        ("ip", "-n", "{}", "link", "add", "name", "bridge", "type", "bridge"),
        ("ip", "-n", "{}", *veth),
        ("ip", "netns", "exec", "{}", "true"),
    )


def _refusal(*commands: tuple[str, ...]) -> str | None:
    """What the first of `commands` to fail says, each tried in a namespace that stands in for its `{}`."""
    probe = f"gwprobe{uuid.uuid4().hex[:6]}"
    try:
        run("ip", "netns", "add", probe)
        for command in commands:
            run(*(part.format(probe) for part in command))
    except RuntimeError as error:
        return f"not allowed here, or not in this kernel: {error}".replace(probe, "NAME")
    finally:
        if probe in _namespaces():
            run("ip", "netns", "delete", probe)
    return None


def _switch(network: str) -> str:
    """The namespace of the bridge."""
    return f"{network}-net"


def _plug(switch: str, port: str, namespace: str | None, interface: str, address: str) -> None:
    """Make `interface` in `namespace` (None: the root one), with `address`, and put its other end into the bridge."""
    there = ("-n", namespace) if namespace else ()
    run("ip", *there, "link", "add", "name", interface, "type", "veth", "peer", "name", port, "netns", switch)
    run("ip", "-n", switch, "link", "set", "dev", port, "master", "bridge", "up")
    run("ip", *there, "address", "add", f"{address}/24", "dev", interface)
    run("ip", *there, "link", "set", "dev", interface, "up")


def _free_subnet() -> ipaddress.IPv4Network:
    """A 10.x.y.0/24 that no route of this machine knows; a route for all of 10.0.0.0/8 is not in the way."""
    routes = [route["dst"] for route in json.loads(run("ip", "-json", "-4", "route", "show", "table", "all"))]
    known = [ipaddress.IPv4Network(route) for route in routes if route != "default"]
    taken = [network for network in known if network.prefixlen >= 16]
    free = (
        ipaddress.IPv4Network((f"10.{random.randrange(64, 255)}.{random.randrange(255)}.0", 24)) for _ in range(1000)
    )
    for subnet in free:
        if not any(subnet.overlaps(network) for network in taken):
            return subnet
    raise RuntimeError("no 10.x.y.0/24 is free")


def _namespaces() -> list[str]:
    return [line.split()[0] for line in run("ip", "netns", "list").splitlines()]


def _processes(namespace: str) -> list[int]:
    return [int(line) for line in run("ip", "netns", "pids", namespace).split()]


def _kill(namespace: str) -> None:
    def gone() -> bool:
        for process in (living := _processes(namespace)):
            with suppress(ProcessLookupError):  # ended since
                os.kill(process, signal.SIGKILL)
        return not living

    eventually(gone, KILL_TIMEOUT_S)


def _remove(network: str) -> None:
    """End and remove all that carries the name of `network`, however much of it was made."""
    for namespace in _namespaces():
        if namespace.startswith(f"{network}-"):
            _kill(namespace)
            run("ip", "netns", "delete", namespace)
    # The kernel takes a link along with either of its ends' namespaces, but in its own time.
    eventually(lambda: not Path("/sys/class/net", network).exists(), KILL_TIMEOUT_S)
    with suppress(FileNotFoundError):
        shutil.rmtree(RUNTIME / network)


def _remove_leftovers() -> None:
    for folder in RUNTIME.iterdir():
        if folder.is_dir() and (lock := _try_lock(folder)) is not None:
            with lock:
                _remove(folder.name)


def _try_lock(folder: Path) -> IO[str] | None:
    """Hold the folder's lock until the file is closed; None when somebody else does."""
    lock = (folder / "owner").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """While one network is made, no other looks for leftovers or for a free subnet."""
    RUNTIME.mkdir(mode=0o700, exist_ok=True)
    if RUNTIME.is_symlink() or RUNTIME.stat().st_uid != os.geteuid():
        raise PermissionError(f"{RUNTIME} belongs to somebody else")
    with (RUNTIME / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

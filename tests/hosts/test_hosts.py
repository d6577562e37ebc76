"""What the hosts themselves promise to the tests that stand on them."""

import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.e2e.server import Process, eventually
from tests.hosts.cluster import Cluster
from tests.hosts.net import RUNTIME, Host, Network, run, why_not, why_not_slow

PORT = 9000
ECHO = f"""
import socket, sys
with socket.create_server((sys.argv[1], {PORT})) as server:
    print("listening", flush=True)
    while True:
        connection, _ = server.accept()
        while data := connection.recv(1):
            connection.sendall(data)
"""
CONNECT = f"import socket, sys; socket.create_connection((sys.argv[1], {PORT}), timeout=1)"
OWNER = """
import sys, threading
from tests.hosts.net import Network
with Network(1) as network:
    process = network.hosts[0].run("sleep", "1000")
    print("made", network.name, process.process.pid, flush=True)
    threading.Event().wait()
"""

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
needs_netem = pytest.mark.skipif(why_not_slow() is not None, reason=str(why_not_slow()))


@pytest.fixture(scope="module")
def hosts(network: Callable[[int], Network]) -> list[Host]:
    return network(2).hosts


@contextmanager
def echo(host: Host) -> Iterator[None]:
    process = host.run(sys.executable, "-c", ECHO, host.address)
    try:
        process.wait_for_line("listening")
        yield
    finally:
        process.kill()


@contextmanager
def connection_to(host: Host) -> Iterator[socket.socket]:
    with echo(host), socket.create_connection((host.address, PORT), timeout=30) as connection:
        yield connection


def round_trip(connection: socket.socket) -> bytes:
    connection.sendall(b"x")
    return connection.recv(1)


def connects(host: Host) -> bool:
    """Whether the root namespace does."""
    try:
        socket.create_connection((host.address, PORT), timeout=1).close()
    except OSError:
        return False
    return True


def connects_from(source: Host, target: Host) -> bool:
    return source.run(sys.executable, "-c", CONNECT, target.address).wait() == 0


def remains(network: str) -> list[str]:
    """Whatever there is by that name: namespaces, interfaces and folders."""
    namespaces = [name for name in run("ip", "netns", "list").split() if name.startswith(network)]
    return namespaces + [str(path) for path in (RUNTIME / network, Path("/sys/class/net", network)) if path.exists()]


def test_hosts_reach_each_other_and_the_root_namespace_reaches_them(hosts: list[Host]) -> None:
    with echo(hosts[0]), echo(hosts[1]):
        assert connects(hosts[0])
        assert connects(hosts[1])
        assert connects_from(hosts[0], hosts[1])
        assert connects_from(hosts[1], hosts[0])


def test_a_host_does_not_hear_what_listens_on_another_ones_loopback(hosts: list[Host]) -> None:
    with echo(hosts[0]):
        assert not connects_from(hosts[1], hosts[1])


def test_a_cut_host_is_out_of_reach_both_ways_until_it_is_joined(hosts: list[Host]) -> None:
    with echo(hosts[0]), echo(hosts[1]):
        hosts[1].cut()
        assert not connects(hosts[1])
        assert not connects_from(hosts[0], hosts[1])
        assert not connects_from(hosts[1], hosts[0])
        assert connects(hosts[0])
        hosts[1].join()
        assert connects(hosts[1])
        assert connects_from(hosts[1], hosts[0])


def test_a_cut_breaks_no_connection_and_what_was_sent_arrives_after_the_join(hosts: list[Host]) -> None:
    with connection_to(hosts[1]) as connection:
        assert round_trip(connection) == b"x"
        hosts[1].cut()
        connection.sendall(b"y")
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert "LOWER_UP" in run("ip", "-n", hosts[1].namespace, "link", "show", "dev", "eth0")
        hosts[1].join()
        connection.settimeout(30)
        assert connection.recv(1) == b"y"


@needs_netem
def test_a_slow_link_delays_both_ways_until_it_is_cleared(hosts: list[Host]) -> None:
    with connection_to(hosts[1]) as connection:
        hosts[1].slow(delay_ms=50, loss_percent=1)
        try:
            start = time.monotonic()
            round_trip(connection)
            assert time.monotonic() - start >= 0.1
            shown = run("tc", "-n", hosts[1].namespace, "qdisc", "show", "dev", "eth0")
            assert "delay 50ms" in shown
            assert "loss 1%" in shown
        finally:
            hosts[1].clear()
        assert "netem" not in run("tc", "-n", hosts[1].namespace, "qdisc", "show", "dev", "eth0")


def test_a_link_that_is_not_slow_can_be_cleared(hosts: list[Host]) -> None:
    hosts[1].clear()


def test_killing_a_host_ends_its_processes_and_no_others(hosts: list[Host]) -> None:
    staying = hosts[0].run("sleep", "1000")
    ending = hosts[1].run(
        sys.executable, "-c", "import os; os.fork() or os.setsid(); os.execlp('sleep', 'sleep', '1000')"
    )
    eventually(lambda: len(hosts[1].processes()) == 2)
    hosts[1].kill()
    assert hosts[1].processes() == []
    assert ending.wait() == -signal.SIGKILL
    assert hosts[0].processes() == [staying.process.pid]
    staying.kill()


def test_processes_of_two_hosts_have_different_temporary_folders(hosts: list[Host]) -> None:
    say = sys.executable, "-c", "import tempfile; print('folder', tempfile.gettempdir())"
    folders = {host.run(*say).wait_for_line("folder") for host in hosts}
    assert len(folders) == 2


def test_two_networks_live_side_by_side(hosts: list[Host]) -> None:
    with Network(1) as other, echo(other.hosts[0]):
        assert connects(other.hosts[0])
        assert not connects_from(hosts[0], other.hosts[0])
    assert hosts[0].folder.exists()


def test_nothing_remains_of_a_network_after_its_body_has_raised() -> None:
    network = Network(2)
    processes: list[int] = []

    def fail() -> None:
        with network:
            processes.append(network.hosts[0].run("sleep", "1000").process.pid)
            assert len(remains(network.name)) > 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert remains(network.name) == []
    assert not psutil.pid_exists(processes[0])


def test_what_a_killed_owner_left_behind_is_removed_by_the_next_network() -> None:
    owner = Process(sys.executable, "-c", OWNER)
    _, name, process = owner.wait_for_line("made").split()
    owner.process.kill()
    owner.process.wait()
    assert remains(name)
    with Network(1):
        assert remains(name) == []
    eventually(lambda: not psutil.pid_exists(int(process)))
    owner.kill()


def test_hosts_can_be_had_from_the_command_line_and_are_gone_after_an_interrupt() -> None:
    command = sys.executable, "-m", "tests.hosts"
    up = Process(*command, "up", "2", "--no-ray")
    try:
        name = up.wait_for_line("network").split()[1]
        *_, namespace = up.wait_for_line("h2").split()
        up.wait_for_line("ready")
        for action in "cut", "join", "kill":
            assert Process(*command, action, "h2", "--network", name).wait() == 0
        unknown = Process(*command, "cut", "h3", "--network", name)
        unknown.wait_for_line("no host h3, only h1, h2")
        assert unknown.wait() == 1
        assert namespace in remains(name)
        up.signal(signal.SIGINT)
        assert up.wait() == 0
    finally:
        up.kill()
    assert remains(name) == []


def test_each_host_is_a_ray_node_that_can_be_lost_and_brought_back(ray_hosts: Callable[[int], Cluster]) -> None:
    cluster = ray_hosts(2)
    first, second = cluster.network.hosts
    cluster.wait_until_alive(first, second)
    second.kill()
    cluster.wait_until_alive(first)
    cluster.start(second)
    cluster.wait_until_alive(first, second)
    second.cut()
    cluster.wait_until_alive(first)
    second.join()
    cluster.start(second)
    cluster.wait_until_alive(first, second)

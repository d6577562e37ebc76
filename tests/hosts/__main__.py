"""Hosts for a person to try things on: `python -m tests.hosts up 2` in one terminal, `cut h2` and the like in others.

The process of `up` owns everything and does what the others ask, over a socket in the network's folder, so whatever is
asked for ends with it.
"""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from functools import partial
from multiprocessing.connection import Client, Listener
from pathlib import Path
from queue import Empty
from types import FrameType
from typing import Annotated, NoReturn

import typer

from tests.e2e.server import gangway
from tests.hosts.cluster import Cluster
from tests.hosts.net import RUNTIME, Host, Network, why_not, why_not_slow

SOCKET = "control"
SIGNALS = signal.SIGINT, signal.SIGTERM
app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A host, such as h2.")]
Which = Annotated[str | None, typer.Option("--network", help="Needed when several are up.")]


@app.command()
def up(
    count: Annotated[int, typer.Argument(min=1, max=253, help="Number of hosts.")],
    cpus: Annotated[int, typer.Option(help="CPUs of each host's Ray node.")] = 1,
    ray: Annotated[bool, typer.Option(help="Start a Ray node on each host.")] = True,
) -> None:
    """Make hosts, named h1, h2, …, and keep them until Ctrl-C."""
    if reason := why_not():
        _fail(reason)
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    try:
        with ExitStack() as stack:
            network = stack.enter_context(Network(count))
            cluster = stack.enter_context(closing(Cluster(network, cpus))) if ray else None
            _serve(network, cluster)
    except KeyboardInterrupt:
        print("removed")


@app.command()
def cut(host: Name, network: Which = None) -> None:
    """Lose all packets from and to a host."""
    _ask(network, "cut", host)


@app.command()
def join(host: Name, network: Which = None) -> None:
    """Undo cut."""
    _ask(network, "join", host)


@app.command()
def slow(
    host: Name,
    delay: Annotated[float, typer.Option(min=0, help="Milliseconds, each way.")] = 0,
    loss: Annotated[float, typer.Option(min=0, max=100, help="Per cent of packets, each way.")] = 0,
    network: Which = None,
) -> None:
    """Delay packets from and to a host, or lose some of them."""
    _ask(network, "slow", host, delay, loss)


@app.command()
def clear(host: Name, network: Which = None) -> None:
    """Undo slow."""
    _ask(network, "clear", host)


@app.command()
def kill(host: Name, network: Which = None) -> None:
    """Kill every process on a host."""
    _ask(network, "kill", host)


@app.command()
def start(host: Name, network: Which = None) -> None:
    """Start a new Ray node on a host, in place of the one that was there."""
    _ask(network, "start", host)


def _serve(network: Network, cluster: Cluster | None) -> NoReturn:
    """Do what is asked, one thing at a time; ends by an interrupt alone."""
    with Listener(str(network.folder / SOCKET), family="AF_UNIX") as listener:
        print(_description(network, cluster), flush=True)
        while True:
            # Who asked may be gone before the answer.
            with listener.accept() as connection, suppress(EOFError, ConnectionError):
                request = connection.recv()
                print(*request, flush=True)
                connection.send(_do(network, cluster, *request))


def _do(network: Network, cluster: Cluster | None, action: str, name: str, *settings: float) -> str | None:
    """What went wrong, or None."""
    try:
        host = network[name]
        _actions(host, cluster)[action](*settings)
    except (KeyError, RuntimeError, AssertionError) as error:
        return str(error.args[0])
    except Empty:
        return "it took too long"
    return None


def _actions(host: Host, cluster: Cluster | None) -> dict[str, Callable[..., None]]:
    actions: dict[str, Callable[..., None]] = {"cut": host.cut, "join": host.join, "clear": host.clear}
    actions |= {"kill": host.kill, "slow": partial(_slow, host)}
    return actions | {"start": partial(cluster.start, host) if cluster else _no_ray}


def _slow(host: Host, delay_ms: float, loss_percent: float) -> None:
    if reason := why_not_slow():
        raise RuntimeError(reason)
    host.slow(delay_ms, loss_percent)


def _no_ray() -> None:
    raise RuntimeError("these hosts were made without Ray")


def _description(network: Network, cluster: Cluster | None) -> str:
    lines = [f"network {network.name}", *(f"  {host.name}  {host.address}  {host.namespace}" for host in network.hosts)]
    if cluster is not None:
        lines.append(f"Ray at {cluster.address}; to serve from {cluster.head.name}, and to ask from anywhere:")
        lines.append(f"  {_serve_command(cluster)}")
        lines.append(f"  curl http://{cluster.head.address}:8000/readyz")
    return "\n".join([*lines, "ready; Ctrl-C removes all"])


def _serve_command(cluster: Cluster) -> str:
    """A shell's line for `gangway serve` on the head's host, open to the machine, which alone can reach it."""
    variables = {"TMPDIR": str(cluster.head.folder)} | cluster.environment
    shell = ["ip", "netns", "exec", cluster.head.namespace, "env", *(f"{k}={v}" for k, v in variables.items())]
    settings = ["--set", "http.host=0.0.0.0", "--set", "security.insecure=true"]
    return shlex.join(
        [*shell, *map(str, gangway("serve", "configs/local.yaml", "--address", cluster.address)), *settings]
    )


def _ask(network: str | None, *request: str | float) -> None:
    """Have the process that is `up` do it; ends with exit code 1 and the reason when it cannot."""
    try:
        with Client(str(_folder(network) / SOCKET), family="AF_UNIX") as connection:
            connection.send(request)
            reason = connection.recv()
    except (ConnectionError, FileNotFoundError, EOFError):
        _fail("its process has ended")
    if reason is not None:
        _fail(reason)


def _folder(network: str | None) -> Path:
    """The one that was named, else the one that is up."""
    if os.geteuid() != 0:
        _fail("network namespaces need root")
    found = sorted(socket.parent for socket in RUNTIME.glob(f"{network or '*'}/{SOCKET}"))
    if len(found) != 1:
        names = ", ".join(folder.name for folder in found)
        _fail(f"several networks are up, say which with --network: {names}" if found else "no network is up")
    return found[0]


def _interrupt(_: int, __: FrameType | None) -> NoReturn:
    """End, and let no second signal disturb the removal."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _fail(reason: str) -> NoReturn:
    print(f"hosts: {reason}", file=sys.stderr)
    raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m tests.hosts")

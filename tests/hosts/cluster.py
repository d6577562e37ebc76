"""A Ray cluster with one node on each host of a network, that is: nodes which share no address and no folder.

Every node believes that it has the machine's memory to itself, so each gets a small object store. A node that cannot be
reached is given up after seconds, not after Ray's half minute.
"""

import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.server import SAFETY_S, Process
from tests.hosts.net import Host, Network

RAY = Path(sys.executable).with_name("ray")
PORT = 6379
OBJECT_STORE_BYTES = 256 * 1024**2
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "200",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}
"""A node that is cut off is taken to be dead after 5 x (1000 + 200) ms, one whose process was killed after 5 x 200."""
SERVE = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.api.entrance.middlewares"}
"""What stands before Serve's proxy, as in the pods of `gangway cluster`."""
WATCH = """
import sys, time
from ray._raylet import GcsClient
client, before = GcsClient(address=sys.argv[1]), None
while True:
    nodes = client.get_all_node_info().values()
    alive = sorted(node.node_manager_address for node in nodes if node.state == node.ALIVE)
    if alive != before:
        print(f"alive: {' '.join(alive)};", flush=True)
    before = alive
    time.sleep(0.2)
"""
"""Says which nodes are alive whenever that changes. A driver could say it too, but for each one Ray starts workers."""


class Cluster:
    """Ray on `hosts`, the first of the network being the head; all of the network's when none are named.

    A host that is not among them, or was killed, is given a node by `start`.
    """

    def __init__(
        self, network: Network, cpus: int = 1, hosts: Sequence[Host] | None = None, head_cpus: int | None = None
    ) -> None:
        """`cpus` of each node; `head_cpus`: of the head, 0 where no rank is to run there."""
        self.network = network
        self.head = network.hosts[0]
        self.address = f"{self.head.address}:{PORT}"
        self.token = network.folder / "token"
        self.token.write_text(uuid.uuid4().hex)
        self.token.chmod(0o600)
        self._cpus = cpus
        self._head_cpus = cpus if head_cpus is None else head_cpus
        self._nodes: dict[str, Process] = {}
        self._lives = 0
        self.start(*(network.hosts if hosts is None else hosts))

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be let into this cluster."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}

    def start(self, *hosts: Host) -> None:
        """A new node on each host, in a new folder, in place of the one that was there; returns once they run.

        The others join the head, so it comes first if it is among them.
        """
        others = [host for host in hosts if host is not self.head]
        for together in ([self.head] if self.head in hosts else [], others):
            for node in [self._start(host) for host in together]:
                node.wait_for_line("--block")

    def stop(self, host: Host) -> None:
        """Kill the node on `host`, if there is one; whatever else runs there stays."""
        if (node := self._nodes.pop(host.name, None)) is not None:
            node.kill()

    def wait_until_alive(self, *hosts: Host) -> None:
        """Until Ray takes the nodes of these hosts, and no others, to be alive; asked on the head's own host."""
        addresses = sorted(host.address for host in hosts)
        watch = self.head.run(sys.executable, "-c", WATCH, self.address, **self.environment)
        try:
            watch.wait_for_line(f"alive: {' '.join(addresses)};", timeout_s=SAFETY_S)
        finally:
            watch.kill()

    def close(self) -> None:
        for host in reversed(self.network.hosts):
            self.stop(host)

    def _start(self, host: Host) -> Process:
        self.stop(host)
        self._lives += 1
        folder = host.folder / f"r{self._lives}"
        cpus = self._head_cpus if host is self.head else self._cpus
        common = f"--node-ip-address={host.address}", f"--temp-dir={folder}", f"--num-cpus={cpus}"
        memory = f"--object-store-memory={OBJECT_STORE_BYTES}"
        part = self._head_flags() if host is self.head else [f"--address={self.address}"]
        flags = [*part, *common, memory, f"--node-name={host.name}", "--disable-usage-stats", "--block"]
        node = host.run(RAY, "start", *flags, **HEALTH, **SERVE, **self.environment)
        self._nodes[host.name] = node
        return node

    def _head_flags(self) -> list[str]:
        return ["--head", f"--port={PORT}", "--include-dashboard=false"]

"""One command in one world: what the scenarios share."""

from typing import Any

import pytest

from cluster.commands.lifecycle import Lifecycle
from cluster.errors import ClusterError
from cluster.k8s.client import Client
from cluster.status.snapshot import Gang
from tests.kube.samples import gang
from tests.kube.scene import H100
from tests.kube.server import KubeServer
from tests.kube.world import World

Object = dict[str, Any]
WANTED = Gang(name="llama", namespace="default", scheduler="volcano", nodes=2, gpus_per_node=8, product=H100)


class Run:
    """One command's world, and what it has printed."""

    def __init__(self, client: Client, server: KubeServer, *, wanted: Gang = WANTED, **world: Any) -> None:
        self.world = World(server, **world)
        self.lines: list[str] = []
        self.client = client
        self.lifecycle = Lifecycle(
            client=client, gang=wanted, say=self.lines.append, wait=self.world.run, clock=self.world.clock
        )

    def up(self, documents: list[Object] | None = None, **rest: Any) -> None:
        self.lifecycle.up(documents or gang(), **rest)

    def attempt(self, documents: list[Object]) -> str:
        """The sentence of a failure, "" where there was none."""
        try:
            self.up(documents)
        except ClusterError as error:
            return str(error)
        return ""

    def fails(self, kind: type[ClusterError], **rest: Any) -> str:
        with pytest.raises(kind) as caught:
            self.up(**rest)
        return str(caught.value)

    @property
    def told(self) -> str:
        return "\n".join(self.lines)

"""What happens between Ray giving us processes and those processes being a group: the Train backend.

Runs in the Train controller at every (re)start: each rank names its network interface, the registry counts a new
generation, every rank is told its number, and only then is the process group made. A set-up that fails is counted
like any other break of the group.
"""

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch.config import TorchConfig, _TorchBackend
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

from serving.errors import GroupFailed
from serving.homes import settle
from serving.messages import RankInfo
from serving.runtime.error_messages import first_line
from serving.runtime.network import Place, choose_interface, on_one_machine
from serving.runtime.registry.client import RegistryClient

GENERATION = "GANGWAY_GENERATION"
ONE_MACHINE = "GANGWAY_ONE_MACHINE"

COLLECTIVE_TIMEOUT_S = 600
"""For the set-up of the process group and the collectives of loading, where one rank may read its shard from a slow
disk long after the others. Steps have their own, shorter limits."""


class GroupBackend(_TorchBackend):  # type: ignore[misc]
    """Torch's backend with the generation and the network settled first."""

    _formed = 0
    """The last generation that this Train run has formed; the registry may have lost its memory since."""

    def on_start(self, worker_group: Any, backend_config: "GroupTorchConfig") -> None:
        """Form a generation. Raises `GroupFailed` when none may be formed any more."""
        held = worker_group.get_worker_group_state().placement_group_handle
        try:
            self._form(worker_group, backend_config, held.placement_group.id.hex())
        except Exception:
            held.shutdown()  # Train forgets it, and the next group would wait for what is held for nobody
            raise

    def _form(self, worker_group: Any, backend_config: "GroupTorchConfig", placement_group: str) -> None:
        registry = RegistryClient(backend_config.group)
        places = worker_group.execute(_settle)
        ranks = [_rank_info(rank, place) for rank, place in enumerate(places)]
        generation = self._formed = registry.form(ranks, placement_group, self._formed)
        worker_group.execute(_remember, generation, on_one_machine(places))
        try:
            super().on_start(worker_group, backend_config)
        except Exception as error:
            reason = f"the process group could not be set up: {first_line(error)}"
            if registry.fail(generation, reason):
                raise WorkerGroupStartupFailedError(reason) from error
            raise GroupFailed(reason) from error

    def on_shutdown(self, worker_group: Any, backend_config: "GroupTorchConfig") -> None:
        """Nothing: the processes are ended next, and destroying a group that has lost a rank can hang for minutes."""


@dataclass
class GroupTorchConfig(TorchConfig):  # type: ignore[misc]
    """`TorchConfig` for the ranks of `group`."""

    group: str = ""
    timeout_s: int = COLLECTIVE_TIMEOUT_S

    @property
    def backend_cls(self) -> type[GroupBackend]:
        return GroupBackend


def _settle() -> Place:
    """On each rank: name the interface for gloo and NCCL, and tell where this is. The cluster may not be ours."""
    settle()
    ip = ray.util.get_node_ip_address()
    node_id = ray.get_runtime_context().get_node_id()
    return Place(node_id=node_id, ip=ip, pid=os.getpid(), interface=choose_interface(ip))


def _remember(generation: int, one_machine: bool) -> None:
    """On each rank: keep what the train function needs to know of its group."""
    os.environ[GENERATION] = str(generation)
    os.environ[ONE_MACHINE] = str(int(one_machine))


def _rank_info(rank: int, place: Place) -> RankInfo:
    return RankInfo(rank=rank, node_id=place.node_id, ip=place.ip, pid=place.pid, device="")

"""The ways to a group's registry, and how there comes to be one."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import ray
from ray.exceptions import GetTimeoutError, RayActorError

from serving.config import Config
from serving.messages import Endpoint, RankInfo, Snapshot
from serving.runtime.registry.actor import Registry

NAMESPACE = "gangway"
CALL_TIMEOUT_S = 10.0
"""A call to an actor that only stores takes milliseconds; longer means that its node is gone."""

UNREACHABLE = (ValueError, RayActorError, GetTimeoutError)
"""What `RegistryClient` raises when there is no registry, or it does not answer."""

decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode


def registry_name(group: str) -> str:
    """The registry's name in Ray."""
    return f"{group}-registry"


class RegistryClient:
    """A registry as the processes of its own group see it: blocking calls that raise when it cannot be reached."""

    def __init__(self, group: str) -> None:
        self.group = group
        self._actor: Any = None

    def changed(self, after_version: int = -1, timeout_s: float = 0.0) -> Snapshot:
        """The snapshot once its version is not `after_version`, at the latest after `timeout_s`.

        Raises `ValueError` when there is no registry, `RayActorError` or `GetTimeoutError` when it does not answer.
        """
        actor = self._find()
        return decode_snapshot(self._get(actor.changed.remote(after_version, timeout_s), timeout_s))

    def own(self, owner: str, *, brought_serve: bool) -> None:
        """See `group_state.Lifecycle.own`."""
        self._tell("own", owner, brought_serve)

    def hand_over(self, owner: str) -> None:
        """See `group_state.Lifecycle.hand_over`."""
        self._tell("hand_over", owner)

    def form(self, ranks: Sequence[RankInfo], placement_group: str, after: int = 0) -> int:
        """See `group_state.Lifecycle.form`."""
        return int(self._tell("form", list(ranks), placement_group, after))

    def report(self, generation: int, info: RankInfo) -> None:
        """See `group_state.Lifecycle.report`. Does not wait: a report that is lost is followed by another."""
        self._find().tell.remote("report", generation, info)

    def advance(self, progress: dict[str, int]) -> None:
        """See `group_state.Lifecycle.advance`."""
        self._tell("advance", progress)

    def ready(self, generation: int, endpoint: Endpoint) -> None:
        """See `group_state.Lifecycle.ready`."""
        self._tell("ready", generation, endpoint)

    def fail(
        self, generation: int, reason: str, *, final: bool = False, collateral: bool = False, again: bool = False
    ) -> bool:
        """See `group_state.Lifecycle.fail`."""
        return bool(self._tell("fail", generation, reason, final=final, collateral=collateral, again=again))

    def drain(self) -> None:
        """See `group_state.Lifecycle.drain`."""
        self._tell("drain")

    def stop(self) -> None:
        """See `group_state.Lifecycle.stop`."""
        self._tell("stop")

    def restore(self, known: Snapshot) -> None:
        """See `group_state.Lifecycle.restore`."""
        self._tell("restore", known)

    def remove(self) -> None:
        """End the registry's process; its name becomes free."""
        try:
            ray.kill(self._find(), no_restart=True)
        except ValueError:
            return

    def _tell(self, event: str, *args: object, **kwargs: object) -> Any:
        return self._get(self._find().tell.remote(event, *args, **kwargs), 0.0)

    def _get(self, reference: Any, patience_s: float) -> Any:
        try:
            return ray.get(reference, timeout=patience_s + CALL_TIMEOUT_S)
        except (RayActorError, GetTimeoutError):
            self._actor = None
            raise

    def _find(self) -> Any:
        if self._actor is None:
            self._actor = ray.get_actor(registry_name(self.group), namespace=NAMESPACE)
        return self._actor


class RegistryGroupView:
    """A registry as the gateway sees it: asynchronous, and never in its way."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._actor: Any = None

    async def changed(self, after_version: int, timeout_s: float) -> Snapshot | None:
        """The snapshot once its version is not `after_version`, at the latest after `timeout_s`.

        None when the registry cannot be reached; the next call looks for it again.
        """
        try:
            actor = await self._find()
            reference = actor.changed.remote(after_version, timeout_s)
            async with asyncio.timeout(timeout_s + CALL_TIMEOUT_S):
                return decode_snapshot(await reference)
        except (ValueError, RayActorError, TimeoutError):
            self._actor = None
            return None

    async def _find(self) -> Any:
        if self._actor is None:
            self._actor = await asyncio.to_thread(ray.get_actor, registry_name(self._group), NAMESPACE)
        return self._actor


def actor_exists(name: str, namespace: str = NAMESPACE) -> bool:
    """Whether there is a living actor of this name."""
    try:
        ray.get_actor(name, namespace=namespace)
    except ValueError:
        return False
    return True


def open_registry(config: Config) -> RegistryClient:
    """The group's registry, made when there is none."""
    actor = ray.remote(Registry).options(
        name=registry_name(config.name),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
    )
    actor.remote(config.fault.model_dump(mode="json"))
    return RegistryClient(config.name)

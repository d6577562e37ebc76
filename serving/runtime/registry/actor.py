"""The registry: a small named, detached Ray actor that stores one group's `Snapshot`.

It only stores. Ranks and the Train controller write; the gateway, `gangway serve` and `gangway status` read, by a long
poll that returns on the next change. Snapshots cross as MessagePack. When its process is lost, Ray starts it again
empty and rank 0 hands back what it knows; until then readers get None and serving goes on.
"""

import asyncio
from typing import Any

from serving.config import FaultConfig
from serving.messages import encode
from serving.runtime.registry.group_state import Lifecycle


class Registry:
    """The actor: one `Lifecycle`, and a long poll for its changes. Its methods are the events of `Lifecycle`."""

    def __init__(self, limits: dict[str, Any]) -> None:
        self._life = Lifecycle(FaultConfig.model_validate(limits))
        self._changed = asyncio.Condition()

    async def changed(self, after_version: int, timeout_s: float) -> bytes:
        """The encoded snapshot, as soon as its version is not `after_version`, else after `timeout_s`."""
        async with self._changed:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait_for(lambda: self._life.snapshot.version != after_version)
            except TimeoutError:
                return encode(self._life.snapshot)
        return encode(self._life.snapshot)

    async def tell(self, event: str, *args: Any, **kwargs: Any) -> Any:
        """Apply one event of `Lifecycle` by name; returns and raises what it does."""
        try:
            return getattr(self._life, event)(*args, **kwargs)
        finally:
            async with self._changed:
                self._changed.notify_all()

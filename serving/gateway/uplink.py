"""Follows the group from one generation to the next, and keeps the one link that counts.

What it hears goes to its `Listener`. A link that is silent for `fault.peer_timeout_s` no longer counts as ready: rank 0
hangs, or a step is long. It ends when the group says that the generation is over, when rank 0 has dropped this gateway,
or when it was silent for longer than any step may take; then the same generation is tried again over a new link.
"""

import asyncio
import logging
import time
from typing import Protocol

from serving.config import FaultConfig
from serving.gateway.totals import Totals
from serving.link import LinkClient, LinkLost
from serving.messages import Beat, Dropped, EngineStats, Snapshot, StepOutput, ToEngine

log = logging.getLogger(__name__)

_POLL_S = 5.0
"""How long one look at the group may wait for news."""
_RETRY_S = 0.5
"""Pause before looking again for a group that cannot be asked."""
_WITH_LINK = frozenset({"ready", "draining"})
"""States in which the generation that is there goes on computing."""


class GroupView(Protocol):
    """What a gateway sees of the group's registry."""

    async def changed(self, after_version: int, timeout_s: float) -> Snapshot | None:
        """The newest snapshot once its version is over `after_version`, or after `timeout_s`; None: no registry."""
        ...


class Listener(Protocol):
    """Who is told. Called from the event loop, one call at a time."""

    def on_link(self) -> None:
        """A link stands; nothing was submitted on it yet."""

    def on_loss(self) -> None:
        """The link is gone, with all that was submitted on it."""

    def on_break(self, generation: int) -> None:
        """This generation broke; it had a link, and `on_loss` was told."""

    def on_output(self, output: StepOutput) -> None:
        """A step's output, of the generation that counts."""

    def on_end(self, reason: str) -> None:
        """There will be no further generation, or there has been none for too long."""


class Uplink:
    """The gateway's only way to the group."""

    def __init__(self, group: GroupView, fault: FaultConfig, listener: Listener) -> None:
        self.snapshot: Snapshot | None = None
        """The last one seen; may be older than the group when `registered` is false."""
        self.registered = False
        self.ever_ready = False
        self.totals = Totals()
        self._group = group
        self._fault = fault
        self._listener = listener
        self._link: LinkClient | None = None
        self._reader: asyncio.Task[None] | None = None
        self._linked_to: Snapshot | None = None
        self._unbroken: Snapshot | None = None
        """What was linked to last, until it is known to have broken."""
        self._heard = False
        self._heard_at = self._lost_at = time.monotonic()
        self._seen_version = -1

    @property
    def ready(self) -> bool:
        """Has the generation that counts been heard on the link that stands, and lately?"""
        return self._link is not None and self._heard and not self._silent_for(self._fault.peer_timeout_s)

    @property
    def generation(self) -> int:
        """That of the link which stands; 0 without one."""
        return 0 if self._linked_to is None else self._linked_to.generation

    @property
    def linked(self) -> bool:
        """Is there a link to send on?"""
        return self._link is not None

    @property
    def stats(self) -> EngineStats:
        """The engine's state when last heard."""
        return self.totals.last

    def send(self, message: ToEngine) -> None:
        """Send if there is a link; a link that takes nothing any more is given up."""
        if self._link is None:
            return
        try:
            self._link.send(message)
        except LinkLost as error:
            self._lose(str(error))

    async def run(self) -> None:
        """Follow the group until cancelled."""
        try:
            while True:
                await self._until_failed()
                await asyncio.sleep(_RETRY_S)
        finally:
            self._drop_link()

    async def _until_failed(self) -> None:
        """Follow until an exception that nobody foresaw. The link may be half made then: it is given up."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow())
                tasks.create_task(self._beat())
        except* Exception as errors:
            log.error("following the group failed, and is begun again", exc_info=errors)
            self._seen_version = -1
            self._lose("following the group failed")

    async def _follow(self) -> None:
        while True:
            snapshot = await self._look()
            self.registered = snapshot is not None
            if snapshot is None:
                self._seen_version = -1
                await asyncio.sleep(_RETRY_S)
                continue
            self._seen_version = snapshot.version
            self._turn_to(snapshot)

    async def _look(self) -> Snapshot | None:
        try:
            return await self._group.changed(self._seen_version, _POLL_S)
        except Exception as error:  # whatever the registry's transport raises means the same: it cannot be asked
            log.warning("the group's registry cannot be asked: %s", error)
            return None

    def _turn_to(self, snapshot: Snapshot) -> None:
        """Make the link what the group's state asks for."""
        self.snapshot = snapshot
        if snapshot.state not in _WITH_LINK:
            self._lose(f"the group is {snapshot.state}")
        elif self._linked_to is not None and snapshot.endpoint != self._linked_to.endpoint:
            self._lose(f"generation {snapshot.generation} took over")
        if self._unbroken is not None and snapshot.breaks > self._unbroken.breaks:
            broken, self._unbroken = self._unbroken, None
            self._listener.on_break(broken.generation)
        if snapshot.state in {"failed", "stopped"}:
            self._listener.on_end(end_reason(snapshot))
        if snapshot.state == "ready" and self._link is None:
            self._connect(snapshot)

    def _connect(self, snapshot: Snapshot) -> None:
        if snapshot.endpoint is None:
            return
        log.info("link to generation %d at %s", snapshot.generation, snapshot.endpoint.address)
        self._link = LinkClient(snapshot.endpoint)
        self._linked_to = self._unbroken = snapshot
        self._heard_at = time.monotonic()
        self._reader = asyncio.create_task(self._read(self._link, snapshot.generation))
        self.send(Beat())
        self._listener.on_link()

    async def _read(self, link: LinkClient, generation: int) -> None:
        try:
            await self._hear(link, generation)
        except Exception:  # without its reader a link only looks alive
            log.exception("reading from the group failed")
            await asyncio.sleep(_RETRY_S)  # ends here if the link was lost meanwhile
            self._try_again("reading from the group failed")

    async def _hear(self, link: LinkClient, generation: int) -> None:
        while link is self._link:
            message = await link.receive()
            await asyncio.sleep(0)  # a message that is there already is no turn for others
            if message.generation != generation:
                continue
            self._heard = self.ever_ready = True
            self._heard_at = time.monotonic()
            if isinstance(message, Dropped):
                self._try_again("rank 0 had not heard this gateway for too long")
                return
            self.totals.add(generation, message.stats)
            if isinstance(message, StepOutput):
                self._listener.on_output(message)

    def _lose(self, reason: str) -> None:
        if self._link is None:
            return
        log.warning("link lost: %s", reason)
        self._listener.on_loss()  # first: should it raise, the loss is told again
        self._drop_link()
        self._lost_at = time.monotonic()

    def _drop_link(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        if self._link is not None:
            self._link.close()
        self._link = self._reader = self._linked_to = None
        self._heard = False

    async def _beat(self) -> None:
        """Say every so often that the gateway lives, and mind that the group does."""
        interval = min(1.0, self._fault.peer_timeout_s / 5)
        while True:
            before = time.monotonic()
            await asyncio.sleep(interval)
            if time.monotonic() - before > 2 * interval:
                # This process itself was held up: what rank 0 said meanwhile still lies in the socket.
                self._heard_at = time.monotonic()
            self._mind_the_silence()
            self.send(Beat())

    def _mind_the_silence(self) -> None:
        longest = self._fault.step_timeout_s + self._fault.peer_timeout_s
        if self._link is not None and self._silent_for(longest):
            self._try_again(f"rank 0 was silent for {longest:g} s")
        elif self._link is None and time.monotonic() - self._lost_at > self._fault.restart_window_s:
            self._listener.on_end(f"the group has been gone for {self._fault.restart_window_s:g} s")

    def _silent_for(self, seconds: float) -> bool:
        return time.monotonic() - self._heard_at > seconds

    def _try_again(self, reason: str) -> None:
        """The same generation, over a new link."""
        self._lose(reason)
        if self.snapshot is not None and self.snapshot.state == "ready":
            self._connect(self.snapshot)


def end_reason(snapshot: Snapshot) -> str:
    """A sentence on why no generation will follow. Clients read it, so it holds no failure's own words, which name
    paths and addresses: those are for who may read `/v1/status`.
    """
    if snapshot.state == "failed":
        return "the group has failed; /v1/status says why"
    return f"the group is {snapshot.state}"

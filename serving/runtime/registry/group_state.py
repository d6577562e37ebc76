"""The group's life: every legal change of state in one table, and the record that obeys it.

A group is *formed* (a new generation: fresh processes that load the model), becomes *ready*, and may *break*, after
which it is formed again unless it broke too often. This file decides; it holds no Ray and does no I/O, and time comes
in from outside. A report that belongs to an older generation changes nothing.
"""

import time
from collections.abc import Callable, Sequence

import msgspec

from serving.config import FaultConfig
from serving.errors import GangwayError
from serving.messages import Endpoint, GroupState, RankInfo, Snapshot

TRANSITIONS: dict[GroupState, frozenset[GroupState]] = {
    "starting": frozenset({"loading", "restarting", "draining", "failed", "stopped"}),
    "loading": frozenset({"loading", "ready", "restarting", "draining", "failed", "stopped"}),
    "ready": frozenset({"loading", "restarting", "draining", "failed", "stopped"}),
    "restarting": frozenset({"loading", "restarting", "draining", "failed", "stopped"}),
    "draining": frozenset({"draining", "failed", "stopped"}),
    "failed": frozenset({"stopped"}),
    "stopped": frozenset(),
}
"""From `loading` or `ready` straight to `loading`: the group moves off a node that is being drained; nothing broke."""


class IllegalTransition(GangwayError):
    """The group's state does not allow this step; the state is unchanged."""


class Lifecycle:
    """What is known of one group. Each method is an event; `snapshot` is replaced, never changed in place."""

    def __init__(self, limits: FaultConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.snapshot = Snapshot(version=1, generation=0, state="starting")
        self._limits = limits
        self._clock = clock
        self._breaks: list[float] = []
        self._collateral = False

    @property
    def ended(self) -> bool:
        """No further generation will be formed."""
        return self.snapshot.state in {"draining", "failed", "stopped"}

    def own(self, owner: str, brought_serve: bool) -> None:
        """The group belongs to the command `owner`, which started Serve for it if `brought_serve`."""
        self._change(owner=owner, brought_serve=brought_serve)

    def hand_over(self, owner: str) -> None:
        """The group belongs to another command, whose processes are to form the next generation; nothing broke.

        Raises `IllegalTransition` when none may be formed.
        """
        self._enter("restarting", owner=owner, endpoint=None)
        self._collateral = False

    def form(self, ranks: Sequence[RankInfo], placement_group: str | None = None, after: int = 0) -> int:
        """A new generation starts to load; returns its number, which is over `after`: what is formed knows its past,
        where this record may have lost it. Raises `IllegalTransition` when none may be formed.
        """
        before = self.snapshot
        moved = before.state in {"loading", "ready"}
        self._enter(
            "loading",
            generation=max(before.generation, after) + 1,
            ranks=list(ranks),
            placement_group=placement_group,
            endpoint=None,
            restarts=before.restarts + (1 if moved else 0),
        )
        return self.snapshot.generation

    def report(self, generation: int, info: RankInfo) -> None:
        """A rank tells how it stands."""
        if generation != self.snapshot.generation:
            return
        ranks = [info if known.rank == info.rank else known for known in self.snapshot.ranks]
        if ranks != self.snapshot.ranks:
            self._change(ranks=ranks)

    def advance(self, progress: dict[str, int]) -> None:
        """The batch job of this group has come so far."""
        self._change(progress=progress)

    def ready(self, generation: int, endpoint: Endpoint) -> None:
        """The generation computes, and rank 0 listens at `endpoint`. Being told twice is nothing special."""
        if generation != self.snapshot.generation or self.snapshot.state not in {"loading", "draining"}:
            return
        if self.snapshot.state == "draining":
            self._change(endpoint=endpoint)
        else:
            self._enter("ready", endpoint=endpoint)

    def fail(
        self, generation: int, reason: str, *, final: bool = False, collateral: bool = False, again: bool = False
    ) -> bool:
        """A generation broke; returns whether another may be formed.

        A generation breaks once, however many ranks say so. The first reason is kept, except that a rank which only
        lost its peer (`collateral`) gives way to the peer's own reason. `final`: forming again would not help. `again`:
        an attempt to form the next one broke, which counts by itself.
        """
        now = self.snapshot
        if generation < now.generation or now.state in {"failed", "stopped"}:
            return not self.ended
        if now.state == "restarting" and generation == now.generation and not again:
            self._amend(reason, final=final, collateral=collateral)
        else:
            self._break(reason, final=final, collateral=collateral)
        return not self.ended

    def drain(self) -> None:
        """Take no new requests; what runs may finish."""
        self._enter("draining")

    def stop(self) -> None:
        """The group is to end now. Stopping twice is nothing special."""
        if self.snapshot.state != "stopped":
            self._enter("stopped", endpoint=None)

    def restore(self, known: Snapshot) -> None:
        """Take over what rank 0 still knows, after the registry's process was lost with its memory.

        An end that was told since stays, and so does a new owner: what rank 0 knows is of the old one's group.
        """
        now = self.snapshot
        if now.generation == 0 and known.generation > 0:
            handed_over = now.owner is not None and now.owner != known.owner
            self.snapshot = msgspec.structs.replace(
                known,
                version=max(known.version, now.version) + 1,
                state=now.state if self.ended or handed_over else known.state,
                endpoint=None if handed_over else known.endpoint,
                owner=now.owner or known.owner,
            )

    def _break(self, reason: str, *, final: bool, collateral: bool) -> None:
        now = self._clock()
        self._breaks = [at for at in self._breaks if now - at < self._limits.restart_window_s] + [now]
        self._collateral = collateral
        first = self.snapshot.first_failure or reason
        breaks = self.snapshot.breaks + 1
        failures = {"endpoint": None, "breaks": breaks, "first_failure": first, "last_failure": reason}
        if self.snapshot.state == "draining":
            self._enter("stopped", **failures)
        elif final or len(self._breaks) > self._limits.max_restarts:
            self._enter("failed", **failures)
        else:
            self._enter("restarting", restarts=self.snapshot.restarts + 1, **failures)

    def _amend(self, reason: str, *, final: bool, collateral: bool) -> None:
        now = self.snapshot
        if self._collateral and not collateral:
            self._collateral = False
            first = reason if now.first_failure == now.last_failure else now.first_failure
            self._change(first_failure=first, last_failure=reason)
        if final:
            self._enter("failed")

    def _enter(self, state: GroupState, **fields: object) -> None:
        if state not in TRANSITIONS[self.snapshot.state]:
            raise IllegalTransition(f"a group that is {self.snapshot.state} cannot become {state}")
        self._change(state=state, **fields)

    def _change(self, **fields: object) -> None:
        self.snapshot = msgspec.structs.replace(self.snapshot, version=self.snapshot.version + 1, **fields)

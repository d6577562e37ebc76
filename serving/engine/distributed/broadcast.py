"""How a plan gets from rank 0 to its followers: loopback for one rank, a process group for more.

A gloo group of its own, also where the model's collectives go over NCCL. Rank 0 sends at least one plan every
`LONGEST_SILENCE_S`, so that followers do not wait past the group's timeout; `heartbeat` sees that a peer is gone.
"""

from datetime import timedelta
from typing import Protocol

import msgspec
import torch
import torch.distributed as dist

from serving.errors import PeerLost, ProtocolError
from serving.messages import StepPlan, decode_plan, encode

LONGEST_SILENCE_S = 1.0
"""Longest rank 0 leaves its followers without a plan."""

HEADER_BYTES = 4
MAX_PLAN_BYTES = 1 << 30
"""More than any plan has: its prompts came over a link whose messages are sixteen times smaller. A follower that reads
a longer one off a garbled header gives up instead of making room for it."""


class Broadcast(Protocol):
    """One end of the way plans take."""

    def send(self, plan: StepPlan) -> int:
        """Rank 0: hand the plan to all followers; returns the bytes that each was sent. Raises `PeerLost`."""

    def receive(self) -> StepPlan:
        """A follower: the next plan.

        Raises `PeerLost` when rank 0 was silent for too long, `ProtocolError` for bytes that are no plan.
        """


class Loopback:
    """The broadcast of a group of one."""

    def send(self, plan: StepPlan) -> int:  # noqa: ARG002
        return 0

    def receive(self) -> StepPlan:
        raise AssertionError("a group of one has no followers")


class GroupBroadcast:
    """Over a gloo group: one small buffer of fixed size a plan, and a second broadcast for what does not fit."""

    BUFFER_BYTES = 2048
    """Holds the plan of a steady step of hundreds of sequences; new prompts overflow it."""

    def __init__(self, timeout_s: float) -> None:
        """Collective: every rank of the default group makes its end."""
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self._buffer = torch.zeros(self.BUFFER_BYTES, dtype=torch.uint8)

    def send(self, plan: StepPlan) -> int:
        frame = framed(plan)
        head = frame[: self.BUFFER_BYTES]
        self._buffer[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        self._broadcast(self._buffer)
        rest = frame[self.BUFFER_BYTES :]
        if rest:
            self._broadcast(torch.frombuffer(bytearray(rest), dtype=torch.uint8))
        return self.BUFFER_BYTES + len(rest)

    def receive(self) -> StepPlan:
        self._broadcast(self._buffer)
        head = self._buffer.numpy().tobytes()
        length = length_of(head)
        payload = head[HEADER_BYTES : HEADER_BYTES + length]
        if len(payload) < length:
            rest = torch.zeros(length - len(payload), dtype=torch.uint8)
            self._broadcast(rest)
            payload += rest.numpy().tobytes()
        return plan_of(payload)

    def _broadcast(self, tensor: torch.Tensor) -> None:
        try:
            dist.broadcast(tensor, src=0, group=self._group)
        except RuntimeError as error:
            raise PeerLost(f"the broadcast of a plan failed: {error}") from error


def framed(plan: StepPlan) -> bytes:
    """A plan's bytes behind their number."""
    payload = encode(plan)
    return len(payload).to_bytes(HEADER_BYTES, "little") + payload


def length_of(frame: bytes) -> int:
    """Bytes of the plan in a frame. Raises `ProtocolError` when no plan is that long."""
    length = int.from_bytes(frame[:HEADER_BYTES], "little")
    if length > MAX_PLAN_BYTES:
        raise ProtocolError(f"a plan of {length} bytes was announced; none has more than {MAX_PLAN_BYTES}")
    return length


def plan_of(payload: bytes) -> StepPlan:
    """The plan. Raises `ProtocolError` for anything else."""
    try:
        return decode_plan(payload)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"rank 0 sent {len(payload)} bytes that are no plan: {error}") from error

"""One tensor-parallel group as the engine sees it: a rank, a world, and a sum.

On one machine the sum goes through shared memory of our own (`shared_memory`), between machines through
connections of our own (`sockets`), and through `torch.distributed` what these do not take: other number
formats, tensors on GPUs, machines without a compiler. DeepSpeed's shared-memory operator is not used: it ignores
groups, spins without giving its core away, returns some formats unreduced without a word, and hangs for good when a
rank dies.
"""

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from serving.engine.distributed.library import sums
from serving.engine.distributed.shared_memory import FORMATS, SharedSum
from serving.engine.distributed.sockets import SocketSum


class NativeSum(Protocol):
    """A sum in C: `function(ranks, is_bf16, data, count)` returns 0 when done."""

    function: Any
    begin: Any
    """With `end` the same in two, for as much as `most` bytes: `begin` returns nothing. None: it cannot be parted."""
    end: Any
    most: int

    @property
    def ranks(self) -> Any:
        """The `ctypes.Structure` that `function` takes first; its `waiting` is 1 while other ranks are waited for."""

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum a contiguous tensor of one of `FORMATS` in place. Raises `PeerLost`."""

    def failure(self, code: int) -> Exception:
        """What to raise when `function` returned `code`."""


class Collectives(Protocol):
    """What the model and the sampler need of the group."""

    @property
    def rank(self) -> int:
        """This process's place, 0 to world - 1."""

    @property
    def world(self) -> int:
        """Processes that hold the model together."""

    @property
    def own(self) -> "NativeSum | None":
        """The sum that `all_reduce` uses where it can, for code that calls it without Python; None: there is none."""

    @property
    def waiting(self) -> bool:
        """Whether `own` waits for other ranks, as seen from another thread."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over the ranks, in place, and return it. It must be contiguous and alike on every rank."""


class Alone:
    """A group of one."""

    rank = 0
    world = 1
    own = None
    waiting = False

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Nothing to add."""
        return tensor


class Group:
    """The ranks of the default process group."""

    def __init__(self, rank: int, world: int, own: NativeSum | None) -> None:
        """`own`: the sum that is used where it can be, in place of `torch.distributed`."""
        self.rank = rank
        self.world = world
        self.own = own

    @property
    def waiting(self) -> bool:
        """Whether `own` waits for other ranks, as seen from another thread."""
        return self.own is not None and bool(self.own.ranks.waiting)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Raises `ValueError` for a tensor that is not contiguous, as its sum would be lost, and `PeerLost`."""
        if not tensor.is_contiguous():
            raise ValueError("all_reduce works in place and needs a contiguous tensor")
        if self.own is not None and tensor.dtype in FORMATS and not tensor.is_cuda:
            self.own.all_reduce(tensor)
        else:
            dist.all_reduce(tensor)
        return tensor


def make_collectives(rank: int, world: int, one_machine: bool, timeout_s: float = 60.0) -> Collectives:
    """The group's collectives; call it on every rank, after `init_deepspeed`."""
    if world == 1:
        return Alone()
    return Group(rank, world, _own_sum(rank, world, one_machine, timeout_s))


def _own_sum(rank: int, world: int, one_machine: bool, timeout_s: float) -> NativeSum | None:
    if one_machine:
        return None if sums() is None else SharedSum(rank, world, timeout_s)
    if dist.get_backend() != "gloo":  # the model is on GPUs
        return None
    able = torch.tensor([sums() is not None], dtype=torch.int32)
    dist.all_reduce(able, op=dist.ReduceOp.MIN)  # one machine may have no compiler
    return SocketSum(rank, world, timeout_s) if able else None

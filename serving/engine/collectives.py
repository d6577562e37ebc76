"""One tensor-parallel group as the engine sees it: a rank, a world, and a sum.

On one machine the sum is DeepSpeed's bare shared-memory operator (3 to 10 us at decode sizes). It ignores groups and
returns other formats and non-contiguous tensors unreduced without a word, hence the checks here. Everywhere else it is
`torch.distributed`. What must be called before either: `serving.engine.model.init_deepspeed`.
"""

from typing import Protocol

import torch
from torch import Tensor


class Collectives(Protocol):
    """What the model and the sampler need of the group."""

    @property
    def rank(self) -> int:
        """This process's place, 0 to world - 1."""

    @property
    def world(self) -> int:
        """Processes that hold the model together."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over the ranks, in place, and return it. It must be contiguous and alike on every rank."""


class Alone:
    """A group of one."""

    rank = 0
    world = 1

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Nothing to add."""
        return tensor


class Group:
    """The ranks of the default process group."""

    def __init__(self, rank: int, world: int, shared_memory: frozenset[torch.dtype]) -> None:
        """`shared_memory`: number formats that the shared-memory operator may be given."""
        self.rank = rank
        self.world = world
        self._shared_memory = shared_memory

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Raises `ValueError` for a tensor that is not contiguous: its sum would be lost."""
        if not tensor.is_contiguous():
            raise ValueError("all_reduce works in place and needs a contiguous tensor")
        if tensor.dtype in self._shared_memory and not tensor.is_cuda:
            torch.ops.deepspeed.inference_all_reduce_(tensor)
        else:
            torch.distributed.all_reduce(tensor)
        return tensor


def make_collectives(rank: int, world: int, one_machine: bool) -> Collectives:
    """The group's collectives; call it on every rank, after `init_deepspeed`."""
    if world == 1:
        return Alone()
    return Group(rank, world, _shared_memory_formats() if one_machine else frozenset())


def _shared_memory_formats() -> frozenset[torch.dtype]:
    """The kernels fault on processors without AVX-512 (16-bit formats) or AVX2 (float32), and their peers hang."""
    if not hasattr(torch.ops.deepspeed, "inference_all_reduce_"):
        return frozenset()
    formats = {
        "AVX512": {torch.float32, torch.bfloat16, torch.float16},
        "AVX2": {torch.float32},
    }
    return frozenset(formats.get(torch.backends.cpu.get_cpu_capability(), set()))

"""The ranks' end of `all_reduce.cpp`: makes the segment that all ranks of one machine map, and sums through it."""

import ctypes
import mmap
import os
import tempfile
from ctypes import c_double, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from serving.engine.native.library import sums
from serving.errors import PeerLost

SLOT_BYTES = 1 << 20
"""Summed at a time; a decode step's sums are some 10 kB, a prefill's some 100."""
SLOTS = 4
"""Of each rank; `kSlots` of `all_reduce.cpp`."""
FLAG_BYTES = 64
FOLDER = "/dev/shm"  # noqa: S108  memory, not a disk
FORMATS = frozenset({torch.bfloat16, torch.float32})


class Ranks(ctypes.Structure):
    """`SharedRanks` of `all_reduce.cpp`."""

    _fields_ = (
        ("base", c_void_p), ("rank", c_int64), ("world", c_int64), ("slot_bytes", c_int64), ("next", c_uint64),
        ("oldest", c_uint64), ("timeout_s", c_double), ("waiting", c_int64),
    )  # fmt: skip


class SharedSum:
    """Sums tensors over the ranks of the default group, which must all be on this machine."""

    def __init__(self, rank: int, world: int, timeout_s: float) -> None:
        """Collective. The segment has no name any more once every rank has mapped it, so it cannot be left behind."""
        self._segment = _map_together(rank, world * (FLAG_BYTES + SLOTS * SLOT_BYTES))
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._segment))
        self.ranks = Ranks(base, rank, world, SLOT_BYTES, 1, 1, timeout_s, 0)
        self.function, self.begin, self.end = (_bound(f"gw_shared_{part}") for part in ("sum", "begin", "end"))
        self.most = SLOT_BYTES

    def all_reduce(self, tensor: Tensor) -> None:
        """In place; contiguous, of one of FORMATS. Raises `PeerLost` when a rank does not come."""
        code = self.function(self.ranks, tensor.dtype is torch.bfloat16, tensor.data_ptr(), tensor.numel())
        if code:
            raise self.failure(code)

    def failure(self, code: int) -> PeerLost:
        """What `function` means by a return value other than 0."""
        return PeerLost(f"rank {code - 1} did not come to a sum within {self.ranks.timeout_s:g} s")


def _bound(name: str) -> Any:
    function = getattr(sums(), name)
    function.restype = c_int64
    function.argtypes = [ctypes.POINTER(Ranks), c_int, c_void_p, c_int64]
    return function


def _map_together(rank: int, size: int) -> mmap.mmap:
    """A zeroed segment that rank 0 makes and all map. Its name goes round as bytes of fixed length."""
    name = torch.zeros(256, dtype=torch.uint8)
    if rank == 0:
        file, path = tempfile.mkstemp(prefix="gangway-", dir=FOLDER)
        os.ftruncate(file, size)
        name[: len(path)] = torch.frombuffer(bytearray(path.encode()), dtype=torch.uint8)
        dist.broadcast(name, src=0)
    else:
        dist.broadcast(name, src=0)
        path = bytes(name.tolist()).rstrip(b"\0").decode()
        file = os.open(path, os.O_RDWR)
    segment = mmap.mmap(file, size)
    os.close(file)
    dist.barrier()
    if rank == 0:
        Path(path).unlink()
    return segment

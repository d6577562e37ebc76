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
FLAG_BYTES = 64
FOLDER = "/dev/shm"  # noqa: S108  memory, not a disk
FORMATS = frozenset({torch.bfloat16, torch.float32})


class SharedSum:
    """Sums tensors over the ranks of the default group, which must all be on this machine."""

    def __init__(self, rank: int, world: int, timeout_s: float) -> None:
        """Collective. The segment has no name any more once every rank has mapped it, so it cannot be left behind."""
        self._rank, self._world, self._timeout_s = rank, world, timeout_s
        self._segment = _map_together(rank, world * (FLAG_BYTES + 2 * SLOT_BYTES))
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._segment))
        self._sums = 1
        self._reduce: Any = getattr(sums(), "gw_all_reduce")  # noqa: B009  mypy knows no such name
        self._reduce.restype = c_int64
        self._reduce.argtypes = [
            c_int, c_void_p, c_int64, c_int64, c_int64, c_uint64, c_void_p, c_int64, c_double,
        ]  # fmt: skip

    def all_reduce(self, tensor: Tensor) -> None:
        """In place; contiguous, of one of FORMATS. Raises `PeerLost` when a rank does not come."""
        missing = self._reduce(
            tensor.dtype is torch.bfloat16, self._address, self._rank, self._world, SLOT_BYTES, self._sums,
            tensor.data_ptr(), tensor.numel(), self._timeout_s,
        )  # fmt: skip
        if missing >= 0:
            raise PeerLost(f"rank {missing} did not come to a sum within {self._timeout_s:g} s")
        self._sums += -(-tensor.nbytes // SLOT_BYTES)


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

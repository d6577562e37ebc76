"""The ranks' end of `csrc/shared_memory.cpp`: makes the segment that all ranks of one machine map, and sums in it."""

import ctypes
import errno
import mmap
import os
import re
import struct
import tempfile
from ctypes import c_double, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from serving.engine.distributed.library import sums
from serving.errors import OperatorError, PeerLost, ProtocolError

SLOT_BYTES = 1 << 20
"""Summed at a time; a decode step's sums are some 10 kB, a prefill's some 100."""
SLOTS = 4
"""Of each rank; `kSlots` of `csrc/shared_memory.cpp`."""
FLAG_BYTES = 64
FOLDER = Path("/dev/shm")  # noqa: S108  memory, not a disk
PREFIX = "gangway-"
NOTE = struct.Struct("!i60s")
"""How rank 0 fared in making the segment: 0 and the file's name, or the error's number."""
FORMATS = frozenset({torch.bfloat16, torch.float32})


class Ranks(ctypes.Structure):
    """`SharedRanks` of `csrc/shared_memory.cpp`."""

    _fields_ = (
        ("base", c_void_p), ("rank", c_int64), ("world", c_int64), ("slot_bytes", c_int64), ("next", c_uint64),
        ("oldest", c_uint64), ("timeout_s", c_double), ("waiting", c_int64),
    )  # fmt: skip


class SharedSum:
    """Sums tensors over the ranks of the default group, which must all be on this machine."""

    def __init__(self, rank: int, world: int, timeout_s: float, folder: Path = FOLDER) -> None:
        """Collective. The segment has no name any more once every rank has mapped it, so it cannot be left behind.

        Raises `OperatorError` where the memory cannot be had, 4 MiB for each rank, in `folder`.
        """
        self._segment = _map_together(rank, world * (FLAG_BYTES + SLOTS * SLOT_BYTES), folder)
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


def _map_together(rank: int, size: int, folder: Path) -> mmap.mmap:
    """A zeroed segment that rank 0 makes and all map. Collective. Raises `OperatorError` on every rank."""
    file, note = _make(size, folder) if rank == 0 else (-1, bytes(NOTE.size))
    told = torch.frombuffer(bytearray(note), dtype=torch.uint8)
    dist.broadcast(told, src=0)
    code, name = NOTE.unpack(bytes(told.tolist()))
    if code:
        raise OperatorError(_too_small(size, folder, code))
    path = folder / _file_name(name)
    if rank:
        file = _open(path, size)
    segment = mmap.mmap(file, size)
    os.close(file)
    dist.barrier()
    if rank == 0:
        path.unlink()
    return segment


def _make(size: int, folder: Path) -> tuple[int, bytes]:
    """Rank 0: a new file of `size` bytes that are there, and the note that tells the others of it, or of why not.

    Allocated, not only sized: memory that is missing would otherwise end the process at its first write.
    """
    try:
        file, path = tempfile.mkstemp(prefix=PREFIX, dir=folder)
    except OSError as error:
        return -1, NOTE.pack(error.errno or errno.EIO, b"")
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        os.close(file)
        Path(path).unlink()
        return -1, NOTE.pack(error.errno or errno.EIO, b"")
    return file, NOTE.pack(0, Path(path).name.encode())


def _file_name(name: bytes) -> str:
    """What rank 0 has told; `ProtocolError` for what is none of its names: it came over a network."""
    text = name.rstrip(b"\0").decode("ascii", "replace")
    if re.fullmatch(rf"{PREFIX}\w+", text, re.ASCII) is None:
        raise ProtocolError(f"rank 0 names its shared memory {text!a}")
    return text


def _open(path: Path, size: int) -> int:
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        raise OperatorError(
            f"{path}: the shared memory of rank 0 cannot be opened: {error.strerror}; ranks on one machine must share "
            f"{path.parent} and run as one user"
        ) from error
    if os.fstat(file).st_size != size:
        os.close(file)
        raise ProtocolError(f"{path}: the shared memory of rank 0 is not of {size} bytes")
    return file


def _too_small(size: int, folder: Path, code: int) -> str:
    seen = os.statvfs(folder) if folder.is_dir() else None
    free = f" ({seen.f_bavail * seen.f_frsize / 2**20:.1f} MiB free)" if seen else ""
    return (
        f"{folder}{free}: the sums over the ranks of this machine need {size / 2**20:.1f} MiB of shared memory there: "
        f"{os.strerror(code)}; Docker sets its size by --shm-size, Kubernetes by an emptyDir of medium Memory "
        f"(resources.shm of gangway cluster)"
    )

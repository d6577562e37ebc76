"""The ranks' end of `csrc/sockets.cpp`: sums over ranks on different machines, through connections of our own.

A decode step waits for two sums a layer, and what it waits for is the way there and back: gloo takes ten times as long
as the network. A closed connection is noticed at once. A rank that is stopped or cut off is noticed by the heartbeat
long before a sum gives up.
"""

import ctypes
import os
from ctypes import POINTER, c_double, c_int, c_int64, c_uint64, c_void_p
from typing import Any

import torch
from torch import Tensor

from serving.engine.distributed.library import sums
from serving.engine.distributed.rendezvous import connect_all
from serving.errors import PeerLost, ProtocolError

WHOLE_BYTES = 256 << 10
"""A tensor up to this size is sent whole to everyone, as waiting costs more than sending; see `csrc/sockets.cpp`."""

_LATE, _BROKEN, _DIFFERS = 1, 2, 3
"""Outcomes of a sum; 0 when it is done."""


class Header(ctypes.Structure):
    """`Header` of `csrc/sockets.cpp`."""

    _fields_ = (("number", c_uint64), ("count", c_int64), ("width", c_int64))


class Report(ctypes.Structure):
    """`Report` of `csrc/sockets.cpp`."""

    _fields_ = (("rank", c_int64), ("error", c_int64), ("ours", Header), ("theirs", Header))


class Ranks(ctypes.Structure):
    """`SocketRanks` of `csrc/sockets.cpp`."""

    _fields_ = (
        ("sockets", POINTER(c_int)), ("rank", c_int64), ("world", c_int64), ("whole_bytes", c_int64),
        ("next", c_uint64), ("timeout_s", c_double), ("waiting", c_int64), ("report", Report),
    )  # fmt: skip


class SocketSum:
    """Sums tensors over the ranks of the default group. All must run on processors of one byte order."""

    def __init__(self, rank: int, world: int, timeout_s: float) -> None:
        """Collective. `timeout_s`: longest silence of a rank that the others wait for. Raises `PeerLost`."""
        self._connections = connect_all(rank, world, timeout_s)
        self._sockets = (c_int * world)(*([-1] * world))
        for peer, connection in self._connections.items():
            self._sockets[peer] = connection.fileno()
        self.ranks = Ranks(self._sockets, rank, world, WHOLE_BYTES, 1, timeout_s, 0)
        self.function: Any = getattr(sums(), "gw_socket_sum")  # noqa: B009  mypy knows no such name
        self.function.restype = c_int64
        self.function.argtypes = [POINTER(Ranks), c_int, c_void_p, c_int64]
        self.begin = self.end = None
        self.most = 0

    def all_reduce(self, tensor: Tensor) -> None:
        """In place; contiguous, of one of `shared_memory.FORMATS`. After an error there can be no other sum.

        Raises `PeerLost` when a rank is gone or does not come, `ProtocolError` when one sums something else.
        """
        code = self.function(self.ranks, tensor.dtype is torch.bfloat16, tensor.data_ptr(), tensor.numel())
        if code:
            raise self.failure(code)

    def failure(self, code: int) -> PeerLost | ProtocolError:
        """What `function` means by a return value other than 0; ends the connections' use."""
        # What is half sent stays so. The connections stay open, or who closed first could not be told.
        ctypes.memset(self._sockets, 0xFF, ctypes.sizeof(self._sockets))
        report = self.ranks.report
        if code == _LATE:
            return PeerLost(f"rank {report.rank} did not come to a sum within {self.ranks.timeout_s:g} s")
        if code == _BROKEN:
            why = os.strerror(report.error) if report.error else "it has closed the connection"
            return PeerLost(f"rank {report.rank} was lost in a sum: {why}")
        assert code == _DIFFERS
        theirs = f"{report.theirs.count} elements of {report.theirs.width} bytes (message {report.theirs.number})"
        ours = f"{report.ours.count} of {report.ours.width} (message {report.ours.number})"
        return ProtocolError(f"rank {report.rank} sums {theirs} where rank {self.ranks.rank} sums {ours}")

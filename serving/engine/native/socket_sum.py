"""The ranks' end of `exchange.cpp`: sums over ranks on different machines, through connections of our own.

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

from serving.engine.native.library import sums
from serving.engine.native.mesh import connect_all
from serving.errors import PeerLost, ProtocolError

WHOLE_BYTES = 256 << 10
"""A tensor up to this size is sent whole to everyone, as waiting costs more than sending; see `exchange.cpp`."""

_LATE, _BROKEN, _DIFFERS = 1, 2, 3
"""Outcomes of a sum; 0 when it is done."""


class _Report(ctypes.Structure):
    _fields_ = (
        ("rank", c_int64), ("error", c_int64), ("number", c_uint64), ("count", c_int64), ("width", c_int64),
    )  # fmt: skip


class SocketSum:
    """Sums tensors over the ranks of the default group. All must run on processors of one byte order."""

    def __init__(self, rank: int, world: int, timeout_s: float) -> None:
        """Collective. `timeout_s`: longest silence of a rank that the others wait for. Raises `PeerLost`."""
        self._rank, self._world, self._timeout_s = rank, world, timeout_s
        self._connections = connect_all(rank, world, timeout_s)
        self._sockets = (c_int * world)(*([-1] * world))
        for peer, connection in self._connections.items():
            self._sockets[peer] = connection.fileno()
        self._sums = 1
        self._reduce: Any = getattr(sums(), "gw_exchange")  # noqa: B009  mypy knows no such name
        self._reduce.restype = c_int
        self._reduce.argtypes = [
            c_int, c_void_p, c_int64, c_int64, c_int64, c_uint64, c_void_p, c_int64, c_double, POINTER(_Report),
        ]  # fmt: skip

    def all_reduce(self, tensor: Tensor) -> None:
        """In place; contiguous, of one of `shared_sum.FORMATS`. After an error there can be no other sum.

        Raises `PeerLost` when a rank is gone or does not come, `ProtocolError` when one sums something else.
        """
        report = _Report()
        outcome = self._reduce(
            tensor.dtype is torch.bfloat16, self._sockets, self._rank, self._world, WHOLE_BYTES, self._sums,
            tensor.data_ptr(), tensor.numel(), self._timeout_s, report,
        )  # fmt: skip
        if outcome:
            # What is half sent stays so. The connections stay open, or who closed first could not be told.
            ctypes.memset(self._sockets, 0xFF, ctypes.sizeof(self._sockets))
            raise self._error(outcome, report, tensor)
        self._sums += 1

    def _error(self, outcome: int, report: _Report, tensor: Tensor) -> PeerLost | ProtocolError:
        if outcome == _LATE:
            return PeerLost(f"rank {report.rank} did not come to a sum within {self._timeout_s:g} s")
        if outcome == _BROKEN:
            why = os.strerror(report.error) if report.error else "it has closed the connection"
            return PeerLost(f"rank {report.rank} was lost in a sum: {why}")
        assert outcome == _DIFFERS
        theirs = f"{report.count} elements of {report.width} bytes (message {report.number})"
        ours = f"{tensor.numel()} of {tensor.element_size()} (sum {self._sums})"
        return ProtocolError(f"rank {report.rank} sums {theirs} where rank {self._rank} sums {ours}")

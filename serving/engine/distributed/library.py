"""The C++ half of the sums over ranks."""

import ctypes
import functools
from pathlib import Path

from serving.engine.native_build import load

SOURCES = Path(__file__).with_name("csrc")


@functools.cache
def sums() -> ctypes.CDLL | None:
    """The sums over ranks, on one machine and on several, on any processor; None where there is no compiler."""
    return load(SOURCES / "shared_memory.cpp", SOURCES / "sockets.cpp")

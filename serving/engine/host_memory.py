"""Memory of this machine: large and zeroed on pages of its own, and given back at once while a model is loaded."""

import contextlib
import ctypes
import math
import mmap
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

_CACHE_LINE = 64
"""Bytes."""
_POPULATE_WRITE = 23
"""madvise's advice to take pages as if they were written, which `mmap` has no name for; Linux 5.14 and later."""
_MMAP_THRESHOLD = -3
"""mallopt's name of the size from which a block is mapped by itself, and so returned when it is freed."""
_WHILE_LOADING = 1 << 20
_AFTERWARDS = 32 << 20
"""The largest that glibc takes: a step's activations then come from the heap, without page faults."""


def mapped(size: int, *, huge: bool = False) -> Tensor:
    """`size` zeros, uint8, mapped and not filled: a page is only taken when it is first written.

    `huge`: in pages of 2 MiB where the system gives them, for what every step reads from end to end: a product of 1 to
    8 rows, which waits for memory, takes a seventh less time (measured with README's processor).
    """
    room = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them: the same memory, slower
            room.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(room, dtype=torch.uint8)[:size]


def populate(room: Tensor) -> None:
    """Take the pages of a mapped room that nothing was written to yet; what was written stays as it is.

    It takes up to a second for each GiB (measured on a virtual machine whose host gives memory when it is first used),
    which the steps that write to it first would lose. A kernel that cannot do it leaves the pages to those.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "madvise"):
        return
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    first = room.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    libc.madvise(first, room.data_ptr() + room.nbytes - first, _POPULATE_WRITE)


def side_by_side(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Zeros of these shapes in one huge mapping, each at a cache line's beginning."""
    starts, end = {}, 0
    for name, shape in shapes.items():
        starts[name] = end
        end += -(-math.prod(shape) * dtype.itemsize // _CACHE_LINE) * _CACHE_LINE
    whole = mapped(end, huge=True).view(dtype)
    return {
        name: whole[starts[name] // dtype.itemsize :][: math.prod(shape)].view(shape) for name, shape in shapes.items()
    }


@contextlib.contextmanager
def returned_at_once() -> Iterator[None]:
    """Within, a tensor that is let go gives its pages back, so that a weight and its packed copy exist side by side
    for one layer only; glibc would keep freed weights in a heap of the model's size. Elsewhere nothing is changed.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _WHILE_LOADING)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _AFTERWARDS)
        libc.malloc_trim(0)

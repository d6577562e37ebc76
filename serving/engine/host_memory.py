"""How the C library hands out and takes back memory while a model is loaded (glibc; elsewhere nothing is changed)."""

import contextlib
import ctypes
from collections.abc import Iterator

_MMAP_THRESHOLD = -3
"""mallopt's name of the size from which a block is mapped by itself, and so returned when it is freed."""
_WHILE_LOADING = 1 << 20
_AFTERWARDS = 32 << 20
"""The largest that glibc takes: a step's activations then come from the heap, without page faults."""


@contextlib.contextmanager
def returned_at_once() -> Iterator[None]:
    """Within, a tensor that is let go gives its pages back, so that a weight and its packed copy exist side by side
    for one layer only; glibc would keep freed weights in a heap of the model's size.
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

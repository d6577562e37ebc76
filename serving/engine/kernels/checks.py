"""What the kernels take on trust, looked at before they are called: they read and write by the sizes they are given.

Sizes and pointers come from tensors whose shapes a model's files decide. A `ValueError` here ends the step with what
was wrong; without it the process would end, or go on with somebody else's memory changed. Element types count too: a
pointer to one type read as another reaches twice as far.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

LANES = 16
"""Widths and block sizes must be multiples of it."""
FORMATS = frozenset({torch.bfloat16, torch.float32})
MAX_WINDOW = 2**31


def require_rows(name: str, rows: Tensor, count: int, width: int, dtype: torch.dtype) -> None:
    """[count, >= width] of `dtype` on the CPU, the elements of a row side by side."""
    shape = tuple(rows.shape)
    if len(shape) != 2 or shape[0] != count or shape[1] < width or rows.dtype is not dtype or rows.device.type != "cpu":
        raise ValueError(f"{name} is {list(shape)} of {rows.dtype}, not [{count}, {width}] of {dtype}")
    if rows.stride(1) != 1 and shape[1] > 1:
        raise ValueError(f"{name}: the elements of a row are {rows.stride(1)} apart")


def require_whole(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Of exactly this shape and type, contiguous, on the CPU."""
    if tuple(tensor.shape) != shape or tensor.dtype is not dtype:
        raise ValueError(f"{name} is {list(tensor.shape)} of {tensor.dtype}, not {list(shape)} of {dtype}")
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"{name} is not contiguous in this machine's memory")


def require_format(dtype: torch.dtype) -> None:
    """One that the kernels compute in."""
    if dtype not in FORMATS:
        raise ValueError(f"the kernels do not compute in {dtype}")


def require_lanes(**sizes: int) -> None:
    """Positive multiples of `LANES`."""
    for name, size in sizes.items():
        if size < LANES or size % LANES:
            raise ValueError(f"{name} is {size}, not a multiple of {LANES}")


def require_heads(heads: int, kv_heads: int) -> None:
    """As many queries for each KV head."""
    if kv_heads < 1 or heads < kv_heads or heads % kv_heads:
        raise ValueError(f"{heads} attention heads for {kv_heads} KV heads")


def require_scoring(scale: float, window: int | None, softcap: float | None) -> None:
    """Finite factors, and a window that is none or at least one token."""
    require_finite(scale=scale, softcap=softcap or 0.0)
    if window is not None and (type(window) is not int or not 1 <= window <= MAX_WINDOW):
        raise ValueError(f"the window is {window}")


def require_finite(**factors: float) -> None:
    """Real numbers of 32 bits."""
    for name, factor in factors.items():
        if not isinstance(factor, int | float) or not math.isfinite(factor) or abs(factor) > torch.finfo().max:
            raise ValueError(f"{name} is {factor}")


def require_rotation(cos: Tensor, sin: Tensor, rows: int, dim: int) -> None:
    """Angles of every row, for no more than a whole head: float32 [rows, at most dim / 2] each."""
    width = cos.shape[-1]
    if not 1 <= width <= dim // 2:
        raise ValueError(f"rotations of {2 * width} elements in heads of {dim}")
    for name, angles in (("cosines", cos), ("sines", sin)):
        require_whole(name, angles, (rows, width), torch.float32)


def require_equal(**shapes: tuple[Iterable[int], Iterable[int]]) -> None:
    """Each pair: as it is, as it should be."""
    for name, (found, expected) in shapes.items():
        if tuple(found) != tuple(expected):
            raise ValueError(f"{name} is {list(found)}, not {list(expected)}")

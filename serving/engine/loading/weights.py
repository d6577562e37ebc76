"""Reads one rank's slices of a checkpoint, and nothing else.

safetensors maps its files, and a touched page of a map counts as this process's memory: so big slices are copied in
blocks and the map is dropped every so often, which keeps the peak near the shard's own size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from serving.engine.loading.checkpoint import FLOAT_BYTES, StoredTensor
from serving.errors import ModelError

MAP_BUDGET_BYTES = 32 * 1024 * 1024
"""Bytes read before a file's map is dropped. Opening one again costs about a millisecond."""

Run = tuple[int, int]
"""first, last + 1."""


@dataclass(frozen=True)
class Share:
    """What AutoTP gave this rank of a linear layer: either some output rows, or a range of input columns."""

    rows: Tensor | None = None
    """int64: rows of the whole layer, in this order; None: all."""

    columns: Run | None = None
    """Columns of a row-parallel layer, whose results are to be summed; None: all, and nothing to sum."""


@dataclass(frozen=True)
class TensorSlice:
    """What one rank holds of a stored tensor: some rows (in runs, in this order), and one range of columns."""

    stored: StoredTensor
    rows: tuple[Run, ...] | None = None
    columns: Run | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the slice."""
        shape = list(self.stored.shape)
        if self.rows is not None:
            shape[0] = sum(last - first for first, last in self.rows)
        if self.columns is not None:
            shape[1] = self.columns[1] - self.columns[0]
        return tuple(shape)


@dataclass(frozen=True)
class Prepared:
    """A parameter that is made of slices: joined, or laid out for the kernels."""

    parts: tuple[TensorSlice, ...]
    shape: tuple[int, ...]
    make: Callable[..., Tensor]
    """The parts' tensors -> the parameter."""


Part = TensorSlice | Prepared
Plan = dict[str, Part]
"""Parameter name -> what it is of the checkpoint."""


def runs(index: Tensor) -> tuple[Run, ...]:
    """The contiguous runs of an int64 [n] index, in its order."""
    if not len(index):
        return ()
    ends = [*(torch.diff(index) != 1).nonzero().flatten().tolist(), len(index) - 1]
    starts = [0, *(end + 1 for end in ends[:-1])]
    return tuple((int(index[start]), int(index[end]) + 1) for start, end in zip(starts, ends, strict=True))


class SliceReader:
    """Copies slices out of safetensors files."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._map: Any = None
        self._left = 0

    def read(self, part: Part, dtype: torch.dtype) -> Tensor:
        """A new tensor of the part, in `dtype`, on the CPU. Raises `ModelError` when the file cannot be read."""
        if isinstance(part, Prepared):
            return part.make(*(self._copy(piece, dtype) for piece in part.parts))
        return self._copy(part, dtype)

    def _copy(self, part: TensorSlice, dtype: torch.dtype) -> Tensor:
        target = torch.empty(part.shape, dtype=dtype)
        done = 0
        try:
            for first, last in self._blocks(part):
                target[done : done + last - first].copy_(self._view(part, first, last))
                done += last - first
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{part.stored.file}: the tensor {part.stored.name} cannot be read: {error}") from error
        return target

    def _blocks(self, part: TensorSlice) -> Iterator[Run]:
        """Row ranges of at most the budget each."""
        shape = part.stored.shape
        row_bytes = FLOAT_BYTES[part.stored.format] * max(1, torch.Size(shape[1:]).numel())
        step = max(1, MAP_BUDGET_BYTES // row_bytes)
        if 0 in part.shape:
            return
        for first, last in part.rows or ((0, shape[0]),):
            for start in range(first, last, step):
                yield start, min(start + step, last)

    def _view(self, part: TensorSlice, first: int, last: int) -> Tensor:
        """Rows of the mapped file; not to be kept."""
        self._open(part, last - first)
        view = self._map.get_slice(part.stored.name)
        rows = view[first:last] if part.columns is None else view[first:last, part.columns[0] : part.columns[1]]
        return cast(Tensor, rows)

    def _open(self, part: TensorSlice, rows: int) -> None:
        if self._file != part.stored.file or self._left <= 0:
            self._file = part.stored.file
            self._map = safe_open(part.stored.file, framework="pt")
            self._left = MAP_BUDGET_BYTES
        self._left -= rows * FLOAT_BYTES[part.stored.format] * torch.Size(part.stored.shape[1:]).numel()

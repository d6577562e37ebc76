"""One step's ragged batch as tensors: what a plan's rows become before the forward pass.

All tokens of all rows stand behind each other in one dimension, decode rows (one token each) first. Nothing is padded
but the block tables, whose tails are never read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serving.engine.mirror import Mirror, Row


@dataclass(frozen=True, slots=True)
class Batch:
    """T tokens of R rows; the first `decodes` rows are one token each."""

    input_ids: Tensor
    """int64 [T]."""
    positions: Tensor
    """int64 [T], position of each token in its own sequence."""
    slots: Tensor
    """int64 [T], block * block_size + offset: where the token's key and value are kept."""
    tables: Tensor
    """int32 [R, widest], the block table of each row, cut to what the row attends to and filled up with block 0."""
    table_of: Tensor
    """int32 [T], the row of each token."""
    decodes: int
    longest: int
    """Tokens that the longest row attends to, the new ones included."""
    longest_decode: int
    """The same of the decode rows; 0 when there are none."""
    chunks: Sequence[Row]
    """The rows behind the decodes, in order."""
    sampled: Tensor
    """int64 [S], indices into T of the tokens whose successor is drawn."""
    wanted: Tensor | None = None
    """int64 [W], indices into T, ascending, of the tokens whose last hidden state is looked at; None: of all."""


def build_batch(mirror: Mirror, rows: Sequence[Row], block_size: int, device: torch.device) -> Batch:
    """Tensors for `rows` in their order."""
    counts = np.array([row.count for row in rows])
    ids: list[int] = []
    for row in rows:
        ids += mirror.sequences[row.handle].tokens[row.start : row.start + row.count]
    table_of = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
    ends = counts.cumsum()
    firsts = np.array([row.start for row in rows]) - (ends - counts)
    positions = np.arange(len(ids)) + firsts[table_of]
    tables = _tables(mirror, rows, block_size)
    slots = tables[table_of, positions // block_size].astype(np.int64) * block_size + positions % block_size
    decodes = sum(row.decode for row in rows)

    def move(array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    sampled = move(ends[[row.samples for row in rows]] - 1)
    return Batch(
        input_ids=move(np.array(ids, dtype=np.int64)),
        positions=move(positions),
        slots=move(slots),
        tables=move(tables),
        table_of=move(table_of),
        decodes=decodes,
        longest=max(row.start + row.count for row in rows),
        longest_decode=max((row.start + 1 for row in rows[:decodes]), default=0),
        chunks=rows[decodes:],
        sampled=sampled,
        wanted=None if len(sampled) == len(ids) or any(row.pooled for row in rows) else sampled,
    )


def _tables(mirror: Mirror, rows: Sequence[Row], block_size: int) -> NDArray[np.int32]:
    used = [-(-(row.start + row.count) // block_size) for row in rows]
    tables = np.zeros((len(rows), max(used)), dtype=np.int32)
    for i, (row, count) in enumerate(zip(rows, used, strict=True)):
        tables[i, :count] = mirror.sequences[row.handle].blocks[:count]
    return tables

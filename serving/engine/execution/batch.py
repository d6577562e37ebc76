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

from serving.engine.attention.base import AttentionMetadata
from serving.engine.execution.replica import Row, SequenceTable


@dataclass(frozen=True, slots=True)
class Batch:
    """T tokens of R rows."""

    input_ids: Tensor
    """int64 [T]."""
    attention: AttentionMetadata
    sampled: Tensor
    """int64 [S], indices into T of the tokens whose successor is drawn."""


def build_batch(replica: SequenceTable, rows: Sequence[Row], block_size: int, device: torch.device) -> Batch:
    """Tensors for `rows` in their order."""
    counts = np.array([row.count for row in rows])
    ids: list[int] = []
    for row in rows:
        ids += replica.sequences[row.handle].tokens[row.start : row.start + row.count]
    table_of = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
    ends = counts.cumsum()
    firsts = np.array([row.start for row in rows]) - (ends - counts)
    positions = np.arange(len(ids)) + firsts[table_of]
    tables = _tables(replica, rows, block_size)
    slots = tables[table_of, positions // block_size].astype(np.int64) * block_size + positions % block_size
    decodes = sum(row.decode for row in rows)

    def move(array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    sampled = move(ends[[row.samples for row in rows]] - 1)
    return Batch(
        input_ids=move(np.array(ids, dtype=np.int64)),
        attention=AttentionMetadata(
            positions=move(positions),
            slots=move(slots),
            tables=move(tables),
            table_of=move(table_of),
            decodes=decodes,
            longest=max(row.start + row.count for row in rows),
            longest_decode=max((row.start + 1 for row in rows[:decodes]), default=0),
            chunks=rows[decodes:],
            wanted=None if len(sampled) == len(ids) or any(row.pooled for row in rows) else sampled,
        ),
        sampled=sampled,
    )


def _tables(replica: SequenceTable, rows: Sequence[Row], block_size: int) -> NDArray[np.int32]:
    used = [-(-(row.start + row.count) // block_size) for row in rows]
    tables = np.zeros((len(rows), max(used)), dtype=np.int32)
    for i, (row, count) in enumerate(zip(rows, used, strict=True)):
        tables[i, :count] = replica.sequences[row.handle].blocks[:count]
    return tables

"""Hidden states of prompts to one vector each, over as many chunks as the prompt is computed in.

Hidden states are the same on every rank, so every rank pools for itself and nothing is gathered. Sums are float32
whatever the model computes in.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from serving.engine.execution.replica import Row, SequenceState
from serving.messages import Pooling


class Pools:
    """The vectors that are not complete yet, by handle."""

    def __init__(self) -> None:
        self._partial: dict[int, Tensor] = {}

    def forget(self, handles: Iterable[int]) -> None:
        """These have ended, or start over."""
        for handle in handles:
            self._partial.pop(handle, None)

    def take(self, rows: Sequence[Row], sequences: dict[int, SequenceState], hidden: Tensor) -> list[bytes]:
        """Take in a step's `hidden` [T, size]; the vectors that it completes, in order of rows."""
        complete: list[bytes] = []
        end = 0
        for row in rows:
            end += row.count
            if not row.pooled:
                continue
            sequence = sequences[row.handle]
            assert sequence.pooling is not None
            self._gather(row, sequence.pooling, hidden[end - row.count : end])
            if row.start + row.count == len(sequence.tokens):
                vector = self._partial.pop(row.handle)
                complete.append(_finished(vector, sequence.pooling, len(sequence.tokens)))
        return complete

    def _gather(self, row: Row, pooling: Pooling, states: Tensor) -> None:
        """Add a chunk's states to what came before it."""
        if pooling.how == "last":
            self._partial[row.handle] = states[-1].clone()  # a view would keep all of the step's states
        elif row.start == 0:
            self._partial[row.handle] = states[0].clone() if pooling.how == "first" else _sum(states)
        elif pooling.how == "mean":
            self._partial[row.handle] += _sum(states)


def _sum(states: Tensor) -> Tensor:
    return states.sum(dim=0, dtype=torch.float32)


def _finished(vector: Tensor, pooling: Pooling, length: int) -> bytes:
    vector = vector.float() / length if pooling.how == "mean" else vector.float()
    if pooling.normalize:
        vector = torch.nn.functional.normalize(vector, dim=0)
    return vector.cpu().numpy().astype("<f4").tobytes()

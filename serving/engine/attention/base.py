"""What the engine and the backends of attention agree on: what a layer asks, which tokens of a step are whose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What a layer asks of its attention, besides being causal."""

    scale: float
    """Factor of the products of queries and keys."""

    sliding_window: int | None
    """A token sees itself and the `sliding_window - 1` before it; None: all before it."""

    softcap: float | None
    """Scores become softcap * tanh(score / softcap), after scaling; None: they stay."""


Attend = Callable[[int, Tensor, Tensor, Tensor, AttentionSpec], Tensor]
"""(layer, query [T, heads, D], key [T, kv_heads, D], value as key, spec) -> [T, heads, D]. Inputs may be strided."""


class TokenRange(Protocol):
    """Tokens of one sequence that follow one another."""

    @property
    def start(self) -> int:
        """Position of the first."""

    @property
    def count(self) -> int: ...


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where a step's T tokens of R rows belong; the first `decodes` rows are one token each."""

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
    chunks: Sequence[TokenRange]
    """The rows behind the decodes, in order."""
    wanted: Tensor | None = None
    """int64 [W], indices into T, ascending, of the tokens whose last hidden state is looked at; None: of all."""


class BatchAttention(Protocol):
    """An `Attend` that is told which batch its calls belong to."""

    def begin(self, batch: AttentionMetadata) -> None:
        """Every call until the next `begin` belongs to this batch."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec, /) -> Tensor:
        """Keep the step's keys and values, then attend: [T, heads, D], [T, kv_heads, D] twice -> [T, heads, D]."""

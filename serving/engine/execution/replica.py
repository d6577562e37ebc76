"""What every rank knows of the sequences, rank 0 too, rebuilt from step plans alone.

A plan is checked as a whole before any of it is applied, so an illegal one leaves the replica as it was. The order is
`apply`, `rows`, compute, `commit`, then the next plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from serving.errors import ProtocolError
from serving.messages import Chunk, NewSequence, Pooling, Sampling, StepPlan, TokenId


@dataclass(slots=True, kw_only=True)
class SequenceState:
    """One sequence as all ranks see it."""

    tokens: list[TokenId]
    """Prompt, then all that was emitted."""
    prompt_len: int
    sampling: Sampling
    pooling: Pooling | None = None
    blocks: list[int] = field(default_factory=list)
    """Block table: position p is in `blocks[p // block_size]`."""
    computed: int = 0
    """Leading tokens whose keys and values are in its blocks; 0 until the first chunk says where it starts."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """One sequence's part of the ragged batch."""

    handle: int
    start: int
    """Position of the first token computed."""
    count: int
    samples: bool
    """Whether the sequence's next token is drawn after this row."""
    decode: bool
    """Whether the row comes from `plan.decode`; such rows lead, with a `count` of 1."""
    pooled: bool = False
    """Whether its sequence becomes a vector: no token is ever drawn for it."""


class _Extent(msgspec.Struct, frozen=True, gc=False):
    """What a check needs to know of a sequence, as it will be once the plan's differences are applied."""

    length: int
    computed: int
    blocks: int
    pooled: bool


class SequenceTable:
    """Sequences by handle. Every rank that applies the same plans and commits the same tokens has the same replica."""

    def __init__(self, block_size: int | None = None) -> None:
        """With `block_size` given, a row that reaches beyond its sequence's blocks is refused too."""
        self.sequences: dict[int, SequenceState] = {}
        self._block_size = block_size
        self._generation: int | None = None
        """Of the first plan."""
        self._number = 0
        self._rows: list[Row] = []
        self._committed = True

    def apply(self, plan: StepPlan) -> None:
        """Take over a plan's differences. Raises ProtocolError, with nothing changed, when the plan is illegal."""
        self._check_turn(plan)
        _check_differences(self.sequences, plan)
        rows = self._checked_rows(plan)
        self._generation, self._number = plan.generation, plan.number
        self._rows, self._committed = rows, not rows
        for handle in plan.finished:
            del self.sequences[handle]
        for handle in plan.preempted:
            self.sequences[handle].blocks.clear()
            self.sequences[handle].computed = 0
        for new in plan.new:
            self.sequences[new.handle] = SequenceState(
                tokens=list(new.tokens), prompt_len=new.prompt_len, sampling=new.sampling, pooling=new.pooling
            )
        for handle, blocks in plan.placed.items():
            self.sequences[handle].blocks.extend(blocks)

    def rows(self, plan: StepPlan) -> list[Row]:
        """Rows of the ragged batch of the plan applied last: decodes in order, then prefill chunks in order."""
        if plan.number != self._number:
            raise ProtocolError(f"plan {plan.number} is not the one applied last, {self._number}")
        return self._rows

    def commit(self, plan: StepPlan, tokens: Sequence[TokenId]) -> None:
        """The plan has been computed: append the tokens drawn, one for each row that samples, in order of rows."""
        rows = self.rows(plan)
        samples = sum(row.samples for row in rows)
        if self._committed and rows:
            raise ProtocolError(f"plan {plan.number} is committed already")
        if len(tokens) != samples:
            raise ProtocolError(f"plan {plan.number} samples {samples} tokens, not {len(tokens)}")
        drawn = iter(tokens)
        for row in rows:
            sequence = self.sequences[row.handle]
            sequence.computed = row.start + row.count
            if row.samples:
                sequence.tokens.append(next(drawn))
        self._committed = True

    def _check_turn(self, plan: StepPlan) -> None:
        if self._generation is not None and plan.generation != self._generation:
            raise ProtocolError(f"plan of generation {plan.generation} in generation {self._generation}")
        if plan.number != self._number + 1:
            raise ProtocolError(f"plan {plan.number} after plan {self._number}")
        if not self._committed:
            raise ProtocolError(f"plan {plan.number} before plan {self._number} was committed")

    def _checked_rows(self, plan: StepPlan) -> list[Row]:
        """The rows of a plan that has yet to be applied."""
        changed = _changed_extents(self.sequences, plan)
        rows = [self._decode_row(handle, self._extent(changed, handle)) for handle in plan.decode]
        rows += [self._prefill_row(chunk, self._extent(changed, chunk.handle)) for chunk in plan.prefill]
        if len({row.handle for row in rows}) != len(rows):
            raise ProtocolError(f"plan {plan.number} computes a sequence twice")
        return rows

    def _extent(self, changed: dict[int, _Extent | None], handle: int) -> _Extent:
        if handle in changed:
            extent = changed[handle]
        else:
            sequence = self.sequences.get(handle)
            extent = None if sequence is None else _extent_of(sequence)
        if extent is None:
            raise ProtocolError(f"plan computes handle {handle}, which is not known")
        return extent

    def _decode_row(self, handle: int, extent: _Extent) -> Row:
        if extent.computed != extent.length - 1:
            raise ProtocolError(
                f"decode of handle {handle}, of whose {extent.length} tokens {extent.computed} are computed"
            )
        self._check_room(handle, extent, extent.length)
        return Row(handle, extent.computed, 1, samples=not extent.pooled, decode=True, pooled=extent.pooled)

    def _prefill_row(self, chunk: Chunk, extent: _Extent) -> Row:
        handle, start, count = chunk.handle, chunk.start, chunk.count
        end = start + count
        if start < 0 or count < 1 or end > extent.length:
            raise ProtocolError(f"chunk {start}+{count} of handle {handle}, which has {extent.length} tokens")
        if extent.computed and start != extent.computed:
            raise ProtocolError(f"chunk of handle {handle} starts at {start}, and {extent.computed} are computed")
        self._check_room(handle, extent, end)
        samples = end == extent.length and not extent.pooled
        return Row(handle, start, count, samples=samples, decode=False, pooled=extent.pooled)

    def _check_room(self, handle: int, extent: _Extent, end: int) -> None:
        if self._block_size is not None and end > extent.blocks * self._block_size:
            raise ProtocolError(f"handle {handle} computes up to {end}, outside its {extent.blocks} blocks")


def _check_differences(sequences: dict[int, SequenceState], plan: StepPlan) -> None:
    """Whether `finished`, `preempted`, `new` and `placed` name sequences that they may name."""
    gone, new = set(plan.finished), {sequence.handle for sequence in plan.new}
    if len(gone) != len(plan.finished) or len(new) != len(plan.new) or len(set(plan.preempted)) != len(plan.preempted):
        raise ProtocolError(f"plan {plan.number} names a handle twice")
    for handle in (*plan.finished, *plan.preempted):
        if handle not in sequences:
            raise ProtocolError(f"plan {plan.number} finishes or preempts handle {handle}, which is not known")
    if not gone.isdisjoint(plan.preempted):
        raise ProtocolError(f"plan {plan.number} preempts a sequence that it finishes")
    for handle in plan.placed:
        if handle not in new and (handle in gone or handle not in sequences):
            raise ProtocolError(f"plan {plan.number} places blocks for handle {handle}, which is not known")
    for sequence in plan.new:
        _check_new(sequences, sequence)


def _check_new(sequences: dict[int, SequenceState], new: NewSequence) -> None:
    if new.handle in sequences:
        raise ProtocolError(f"handle {new.handle} is new, and known already")
    if not 1 <= new.prompt_len <= len(new.tokens):
        raise ProtocolError(f"handle {new.handle} has {len(new.tokens)} tokens, {new.prompt_len} of them prompt")


def _changed_extents(sequences: dict[int, SequenceState], plan: StepPlan) -> dict[int, _Extent | None]:
    """Extents of the sequences that the plan's differences touch; None for those that are gone."""
    changed: dict[int, _Extent | None] = dict.fromkeys(plan.finished)
    for handle in plan.preempted:
        sequence = sequences[handle]
        changed[handle] = _Extent(len(sequence.tokens), 0, 0, sequence.pooling is not None)
    changed.update((new.handle, _Extent(len(new.tokens), 0, 0, new.pooling is not None)) for new in plan.new)
    for handle, blocks in plan.placed.items():
        before = changed.get(handle) or _extent_of(sequences[handle])
        changed[handle] = _Extent(before.length, before.computed, before.blocks + len(blocks), before.pooled)
    return changed


def _extent_of(sequence: SequenceState) -> _Extent:
    return _Extent(len(sequence.tokens), sequence.computed, len(sequence.blocks), sequence.pooling is not None)

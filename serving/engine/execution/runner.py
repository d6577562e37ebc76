"""Plan -> tensors -> forward -> tokens: what every rank computes in a step, the same everywhere."""

import dataclasses
import time
from collections import defaultdict

import torch

from serving.engine.attention.base import BatchAttention
from serving.engine.execution.batch import build_batch
from serving.engine.execution.pooling import Pools
from serving.engine.execution.replica import SequenceTable
from serving.engine.models.sharded_model import ShardedModel
from serving.engine.sampling.sampler import Sampled, Sampler, SamplingRow
from serving.messages import StepPlan


class Runner:
    """One rank's computing half: its replica of the scheduler's state, its shard, its cache, its sampler."""

    def __init__(self, model: ShardedModel, attention: BatchAttention, sampler: Sampler, block_size: int) -> None:
        self._model = model
        self._attention = attention
        self._sampler = sampler
        self._block_size = block_size
        self._replica = SequenceTable(block_size)
        self._pools = Pools()
        self._drawing: dict[int, SamplingRow] = {}
        """Sequences that have drawn, by handle."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Time spent so far, by phase: forward, sample."""
        self.busy_since: float | None = None
        """When the step that runs began, in `time.monotonic`; None between steps."""
        model.attach(attention)

    def execute(self, plan: StepPlan) -> Sampled:
        """Apply the plan, compute its rows, draw their next tokens. Collective where the plan has rows."""
        self.busy_since = time.monotonic()
        sampled = self._execute(plan)
        self.busy_since = None
        return sampled

    @torch.inference_mode()
    def _execute(self, plan: StepPlan) -> Sampled:
        began = time.perf_counter()
        self._replica.apply(plan)
        self._pools.forget((*plan.finished, *plan.preempted))
        for handle in plan.finished:
            self._drawing.pop(handle, None)
        rows = self._replica.rows(plan)
        if not rows:
            return Sampled([], None)
        batch = build_batch(self._replica, rows, self._block_size, self._model.device)
        self._attention.begin(batch.attention)
        hidden = self._model.hidden_states(batch.input_ids, batch.attention.positions)
        asked = [self._sampling_row(row.handle) for row in rows if row.samples]
        logits = self._model.logits(hidden[batch.sampled]) if asked else None
        embeddings = self._pools.take(rows, self._replica.sequences, hidden)
        computed = time.perf_counter()
        sampled = Sampled([], None) if logits is None else self._sampler.sample(logits, asked)
        self._replica.commit(plan, sampled.tokens)
        self.seconds["forward"] += computed - began
        self.seconds["sample"] += time.perf_counter() - computed
        return dataclasses.replace(sampled, embeddings=embeddings) if embeddings else sampled

    def _sampling_row(self, handle: int) -> SamplingRow:
        """The sequence's, which keeps what the sampler has prepared; its tokens are the replica's."""
        if handle not in self._drawing:
            sequence = self._replica.sequences[handle]
            self._drawing[handle] = SamplingRow(sequence.sampling, sequence.tokens, sequence.prompt_len)
        return self._drawing[handle]

"""Attention of a ragged batch on NVIDIA GPUs: torch's flash attention over the blocked cache. Unproven: never run yet.

`num_splits=1` keeps a row's result independent of its batch, so that a resumed stream continues with identical text.
"""

from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from serving.engine.attention.base import AttentionMetadata, AttentionSpec
from serving.engine.attention.kv_cache import KVCache, KVShape

MOST_DIM = 256
BLOCK = 256
"""`engine.block_size` must be a multiple: what FlashAttention 2 asks of a paged cache."""


def supports(shape: KVShape, block_size: int, device: torch.device, softcap: float | None) -> bool:
    """Whether flash attention can do this model: half precision, large blocks, and scores that are not capped."""
    half = shape.dtype in {torch.bfloat16, torch.float16}
    return (
        device.type == "cuda"
        and block_size % BLOCK == 0
        and half
        and softcap is None
        and shape.head_dim % 8 == 0
        and shape.head_dim <= MOST_DIM
    )


class FlashAttention:
    """As `RaggedAttention`, in one kernel a layer; nothing of a step goes back to the host."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._batch: AttentionMetadata
        self._firsts: Tensor
        self._lengths: Tensor
        self._most = 0

    def begin(self, batch: AttentionMetadata) -> None:
        """Every call until the next `begin` belongs to this batch."""
        counts = [1] * batch.decodes + [row.count for row in batch.chunks]
        ends = torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
        self._firsts = ends.to(batch.positions.device, non_blocking=True)
        self._lengths = (batch.positions[self._firsts[1:] - 1] + 1).int()
        self._most = max(counts)
        self._batch = batch

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        """[T, heads, D], [T, kv_heads, D] twice -> [T, heads, D]."""
        batch = self._batch
        self._cache.write(layer, batch.slots, key, value)
        keys, values = self._cache.blocks(layer)
        mixed = varlen_attn(
            query.contiguous(),
            keys,
            values,
            self._firsts,
            None,
            self._most,
            batch.longest,
            scale=spec.scale,
            window_size=(-1 if spec.sliding_window is None else spec.sliding_window - 1, 0),
            enable_gqa=True,
            seqused_k=self._lengths,
            block_table=batch.tables,
            num_splits=1,
        )
        assert isinstance(mixed, Tensor)
        return mixed

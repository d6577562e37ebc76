"""Attention of a ragged batch over the blocked cache, in plain torch: runs anywhere and is the reference.

A grouped product-softmax-product costs about a tenth of `scaled_dot_product_attention` for one query per sequence on a
CPU (measured), so both kinds of rows use it.
"""

import torch
from torch import Tensor

from serving.engine.attention.base import AttentionMetadata, AttentionSpec
from serving.engine.attention.kv_cache import KVCache


class RaggedAttention:
    """Writes the step's keys and values to the cache, then attends: each token to those of its own sequence."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._batch: AttentionMetadata | None = None

    def begin(self, batch: AttentionMetadata) -> None:
        """Every call until the next `begin` belongs to this batch."""
        self._batch = batch

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        """[T, heads, D], [T, kv_heads, D] twice -> [T, heads, D]."""
        batch = self._batch
        assert batch is not None, "begin() names the batch first"
        self._cache.write(layer, batch.slots, key, value)
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        if batch.decodes:
            decodes = slice(batch.decodes)
            keys, values = self._cache.read(layer, batch.tables[decodes], batch.longest_decode)
            output[decodes] = attend(query[decodes, None], keys, values, batch.positions[decodes, None], spec)[:, 0]
        first = batch.decodes
        for i, row in enumerate(batch.chunks, batch.decodes):
            span = slice(first, first + row.count)
            keys, values = self._cache.read(layer, batch.tables[i, None], row.start + row.count)
            output[span] = attend(query[None, span], keys, values, batch.positions[None, span], spec)[0]
            first += row.count
        return output


def attend(query: Tensor, keys: Tensor, values: Tensor, places: Tensor, spec: AttentionSpec) -> Tensor:
    """Causal attention with grouped heads, soft cap and sliding window; the softmax is taken in float32.

    Args:
        query: [B, N, heads, D].
        keys: [B, L, kv_heads, D], position = index.
        values: as `keys`.
        places: int64 [B, N], position of each query.
        spec: scale, window and soft cap of the layer.

    Returns:
        [B, N, heads, D].
    """
    batch, count, heads, dim = query.shape
    length, kv_heads = keys.shape[1:3]
    grouped = query.view(batch, count, kv_heads, heads // kv_heads, dim).permute(0, 2, 3, 1, 4)
    scores = grouped.flatten(2, 3) @ keys.permute(0, 2, 3, 1)
    scores = scores.view(batch, kv_heads, heads // kv_heads, count, length).float() * spec.scale
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    scores.masked_fill_(~_visible(places, length, spec.sliding_window)[:, None, None], float("-inf"))
    weights = scores.softmax(dim=-1).to(values.dtype).flatten(2, 3)
    mixed = weights @ values.permute(0, 2, 1, 3)
    return mixed.view(batch, heads, count, dim).transpose(1, 2)


def _visible(places: Tensor, length: int, window: int | None) -> Tensor:
    """Bool [B, N, length]: which positions each query may look at."""
    positions = torch.arange(length, device=places.device)
    behind = places.unsqueeze(-1) - positions
    return (behind >= 0) if window is None else (behind >= 0) & (behind < window)

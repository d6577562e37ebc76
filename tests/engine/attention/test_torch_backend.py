"""Attention over blocks equals attention over the sequence written out, for any mix of rows."""

import pytest
import torch
from torch import Tensor

from serving.engine.attention.base import AttentionMetadata, AttentionSpec
from serving.engine.attention.kv_cache import KVCache, KVShape, reserve
from serving.engine.attention.torch_backend import RaggedAttention
from serving.engine.execution.replica import Row

BLOCK = 4
HEADS, KV_HEADS, DIM = 6, 3, 8


def written_out(query: Tensor, keys: Tensor, values: Tensor, first: int, spec: AttentionSpec) -> Tensor:
    """One query at a time: [n, heads, D] against [L, kv_heads, D], queries at positions first.."""
    rows = []
    for i, q in enumerate(query):
        place = first + i
        low = 0 if spec.sliding_window is None else max(0, place - spec.sliding_window + 1)
        heads = []
        for head in range(HEADS):
            k = keys[low : place + 1, head // (HEADS // KV_HEADS)]
            v = values[low : place + 1, head // (HEADS // KV_HEADS)]
            scores = (k @ q[head]) * spec.scale
            if spec.softcap is not None:
                scores = torch.tanh(scores / spec.softcap) * spec.softcap
            heads.append(scores.softmax(0) @ v)
        rows.append(torch.stack(heads))
    return torch.stack(rows)


def cache_of(shape: KVShape, blocks: int) -> KVCache:
    return KVCache(shape, reserve(shape, blocks * BLOCK, torch.device("cpu")), BLOCK)


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_decode_and_prefill_rows_attend_to_their_own_sequences(window: int | None, softcap: float | None) -> None:
    torch.manual_seed(0)
    spec = AttentionSpec(scale=0.3, sliding_window=window, softcap=softcap)
    cache = cache_of(KVShape(1, KV_HEADS, DIM, torch.float32), 16)
    attention = RaggedAttention(cache)
    # Three sequences whose blocks are scattered; new tokens: one, one, and five after three.
    tables = [[5, 2, 9], [1], [7, 3]]
    lengths, new = [10, 1, 8], [1, 1, 5]
    keys = [torch.randn(n, KV_HEADS, DIM) for n in lengths]
    values = [torch.randn(n, KV_HEADS, DIM) for n in lengths]
    query = torch.randn(sum(new), HEADS, DIM)

    def slots(i: int, start: int) -> list[int]:
        return [tables[i][p // BLOCK] * BLOCK + p % BLOCK for p in range(start, lengths[i])]

    for i in range(3):
        old = lengths[i] - new[i]
        cache.write(0, torch.tensor(slots(i, 0)[:old], dtype=torch.int64), keys[i][:old], values[i][:old])
    batch = AttentionMetadata(
        positions=torch.tensor([9, 0, 3, 4, 5, 6, 7]),
        slots=torch.tensor([slot for i in range(3) for slot in slots(i, lengths[i] - new[i])]),
        tables=torch.tensor([[5, 2, 9], [1, 0, 0], [7, 3, 0]], dtype=torch.int32),
        table_of=torch.tensor([0, 1, 2, 2, 2, 2, 2], dtype=torch.int32),
        decodes=2,
        longest=10,
        longest_decode=10,
        chunks=[Row(3, start=3, count=5, samples=True, decode=False)],
    )
    attention.begin(batch)
    tail = [slice(lengths[i] - new[i], None) for i in range(3)]
    found = attention(
        0,
        query,
        torch.cat([keys[i][tail[i]] for i in range(3)]),
        torch.cat([values[i][tail[i]] for i in range(3)]),
        spec,
    )
    expected = torch.cat(
        [
            written_out(query[0:1], keys[0], values[0], 9, spec),
            written_out(query[1:2], keys[1], values[1], 0, spec),
            written_out(query[2:7], keys[2], values[2], 3, spec),
        ]
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_single_decode_row_with_a_single_head_keeps_its_shape() -> None:
    cache = cache_of(KVShape(1, 1, 4, torch.float32), 2)
    attention = RaggedAttention(cache)
    attention.begin(
        AttentionMetadata(
            positions=torch.zeros(1, dtype=torch.int64),
            slots=torch.tensor([4]),
            tables=torch.tensor([[1]], dtype=torch.int32),
            table_of=torch.tensor([0], dtype=torch.int32),
            decodes=1,
            longest=1,
            longest_decode=1,
            chunks=[],
        )
    )
    value = torch.randn(1, 1, 4)
    found = attention(0, torch.randn(1, 1, 4), torch.randn(1, 1, 4), value, AttentionSpec(1.0, None, None))
    torch.testing.assert_close(found, value)

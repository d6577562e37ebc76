"""What only a GPU can show: its attention and its draws are the CPU's, and a step waits for it once.

Has never run: no GPU was at hand when it was written.
"""

import warnings
from typing import Any

import pytest
import torch

from serving.engine.attention import flash_backend as flash
from serving.engine.attention.base import AttentionMetadata, AttentionSpec, BatchAttention
from serving.engine.attention.flash_backend import FlashAttention
from serving.engine.attention.kv_cache import KVCache, KVShape, reserve
from serving.engine.attention.torch_backend import RaggedAttention
from serving.engine.distributed.collectives import make_collectives
from serving.engine.execution.replica import Row
from serving.engine.sampling.sampler import Sampler, SamplingRow
from serving.messages import Sampling
from tests.support.requires import needs_cuda

CUDA = torch.device("cuda")
SHAPE = KVShape(layers=1, kv_heads=2, head_dim=64, dtype=torch.bfloat16)
VOCAB = 4096


def test_flash_attention_is_left_to_what_it_can_do() -> None:
    full = KVShape(layers=1, kv_heads=2, head_dim=64, dtype=torch.float32)
    wide = KVShape(layers=1, kv_heads=2, head_dim=512, dtype=torch.bfloat16)
    assert flash.supports(SHAPE, 256, CUDA, None)
    assert not flash.supports(SHAPE, 256, torch.device("cpu"), None)
    assert not flash.supports(SHAPE, 16, CUDA, None)
    assert not flash.supports(SHAPE, 256, CUDA, 50.0)
    assert not flash.supports(full, 256, CUDA, None)
    assert not flash.supports(wide, 256, CUDA, None)


def decode_and_chunk(device: torch.device, block: int) -> AttentionMetadata:
    """A sequence's 300th token, and tokens 10 to 19 of another."""
    positions = [299, *range(10, 20)]
    tables = torch.tensor([[2, 1], [3, 0]], dtype=torch.int32)
    rows = [0, *[1] * 10]
    slots = [int(tables[row, at // block]) * block + at % block for row, at in zip(rows, positions, strict=True)]
    return AttentionMetadata(
        positions=torch.tensor(positions, device=device),
        slots=torch.tensor(slots, device=device),
        tables=tables.to(device),
        table_of=torch.tensor(rows, dtype=torch.int32, device=device),
        decodes=1,
        longest=300,
        longest_decode=300,
        chunks=[Row(3, start=10, count=10, samples=True, decode=False)],
    )


@needs_cuda
@pytest.mark.parametrize("window", [None, 5])
def test_flash_attention_gives_what_the_reference_gives(window: int | None) -> None:
    torch.manual_seed(0)
    block, spec = 256, AttentionSpec(0.125, window, None)
    past = torch.randn(2, 4 * block, SHAPE.kv_heads, SHAPE.head_dim)
    query, new = torch.randn(11, 6, SHAPE.head_dim), torch.randn(2, 11, SHAPE.kv_heads, SHAPE.head_dim)
    found = []
    for device, backend in ((torch.device("cpu"), RaggedAttention), (CUDA, FlashAttention)):
        cache = KVCache(SHAPE, reserve(SHAPE, 4 * block, device), block)
        everywhere = torch.arange(4 * block, device=device)
        cache.write(0, everywhere, *(part.to(device, SHAPE.dtype) for part in past))
        attention: BatchAttention = backend(cache)
        attention.begin(decode_and_chunk(device, block))
        queries, keys, values = (tensor.to(device, SHAPE.dtype) for tensor in (query, new[0], new[1]))
        found.append(attention(0, queries, keys, values, spec).float().cpu())
    torch.testing.assert_close(found[1], found[0], atol=2e-2, rtol=2e-2)


def drawing(seed: int, **settings: Any) -> Sampling:
    return Sampling(seed=seed, max_tokens=9, **settings)


def rows(*samplings: Sampling) -> list[SamplingRow]:
    return [SamplingRow(sampling, [1, 5, 9, 5], 2) for sampling in samplings]


def sampler(device: torch.device) -> Sampler:
    return Sampler(make_collectives(0, 1, one_machine=True), 0, VOCAB, frozenset({2}), device)


@needs_cuda
def test_a_gpu_draws_the_cpus_tokens() -> None:
    asked = rows(
        drawing(seed=1, temperature=0),
        drawing(seed=2, temperature=0.8),
        drawing(seed=3, temperature=1.2, top_k=20),
        drawing(seed=4, temperature=1.0, top_p=0.7, repetition_penalty=1.3),
        drawing(seed=5, temperature=1.0, min_p=0.05, presence_penalty=0.5, logit_bias={7: 2.0}, min_tokens=5),
    )
    torch.manual_seed(1)
    logits = torch.randn(len(asked), VOCAB) * 4
    expected = sampler(torch.device("cpu")).sample(logits.clone(), asked)
    assert sampler(CUDA).sample(logits.to(CUDA), asked).tokens == expected.tokens


@needs_cuda
def test_the_host_waits_once_for_a_step_s_draws() -> None:
    asked = rows(drawing(seed=1, temperature=0), drawing(seed=2, temperature=0.8), drawing(seed=3, top_k=20))
    draw, logits = sampler(CUDA), torch.randn(len(asked), VOCAB, device=CUDA)
    draw.sample(logits.clone(), asked)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            draw.sample(logits, asked)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([one for one in said if "synchronizing CUDA operation" in str(one.message)]) == 1

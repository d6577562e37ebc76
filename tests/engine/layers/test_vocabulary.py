"""Embedding and head, each rank its own range of tokens."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.gemma.modeling_gemma import GemmaTextScaledWordEmbedding

from serving.engine.distributed.collectives import Alone
from serving.engine.layers.vocabulary import OutputHead, ShardedEmbedding, VocabSlice


@given(st.integers(1, 300_000), st.integers(1, 16))
def test_the_ranks_ranges_tile_the_vocabulary(vocab_size: int, world: int) -> None:
    ranges = [VocabSlice.of_rank(vocab_size, rank, world) for rank in range(world)]
    assert ranges[0].start == 0
    assert ranges[-1].end == vocab_size
    assert all(left.end == right.start for left, right in itertools.pairwise(ranges))
    sizes = [piece.end - piece.start for piece in ranges]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scaled_embedding_rounds_as_gemmas_does(dtype: torch.dtype) -> None:
    theirs = GemmaTextScaledWordEmbedding(50, 3072, 0, embed_scale=3072**0.5).to(dtype)
    ours = ShardedEmbedding(theirs.weight.data, VocabSlice(0, 50), Alone(), 3072**0.5)
    ids = torch.arange(50)
    assert torch.equal(ours(ids), theirs(ids))


def test_logits_are_scaled_and_capped_in_float32() -> None:
    weight, bias, hidden = torch.randn(5, 8), torch.randn(5), torch.randn(3, 8)
    logits = OutputHead(weight.bfloat16(), bias.bfloat16(), 0.5, 2.0)(hidden.bfloat16())
    plain = (torch.nn.functional.linear(hidden.bfloat16(), weight.bfloat16(), bias.bfloat16())).float()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, torch.tanh(plain * 0.5 / 2.0) * 2.0)

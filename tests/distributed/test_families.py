"""Every supported family, sharded over one, two and three ranks, gives Hugging Face's logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from serving.config import ModelConfig
from serving.engine.attention.base import AttentionSpec
from serving.engine.distributed.collectives import Collectives
from serving.engine.loading.loader import load_model, unwatched
from tests.distributed.ranks import RankPool
from tests.engine.tiny_models import MODELS, reference_logits, save_model

PROMPTS = [[1, 17, 210, 0, 33, 99, 105, 7, 150, 42, 71], [5, 209, 64, 64, 128, 70, 2]]
TOLERANCE = 2e-5
"""Largest difference, relative to the largest logit."""

Saved = dict[str, tuple[Path, np.ndarray[Any, Any]]]


class NaiveAttention:
    """Causal attention over whole prompts, one query at a time, with nothing kept."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = lengths

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        mixed = torch.empty(query.shape)
        group = query.shape[1] // key.shape[1]
        start = 0
        for length in self._lengths:
            for place in range(length):
                first = 0 if spec.sliding_window is None else max(0, place - spec.sliding_window + 1)
                seen = slice(start + first, start + place + 1)
                keys = key[seen].repeat_interleave(group, dim=1)
                scores = torch.einsum("hd,lhd->hl", query[start + place], keys) * spec.scale
                if spec.softcap is not None:
                    scores = spec.softcap * torch.tanh(scores / spec.softcap)
                values = value[seen].repeat_interleave(group, dim=1)
                mixed[start + place] = torch.einsum("hl,lhd->hd", scores.softmax(-1), values)
            start += length
        return mixed


def local_logits(
    collectives: Collectives, folder: Path, prompts: list[list[int]], balance_mlp: bool = False
) -> dict[str, Any]:
    """On a rank: load, run the prompts as one ragged batch, and return this rank's logits and its sizes."""
    config = ModelConfig(path=folder, dtype="float32", max_model_len=32, shard_cache=None)
    model = load_model(config, collectives, torch.device("cpu"), unwatched, balance_mlp=balance_mlp)
    model.attach(NaiveAttention([len(prompt) for prompt in prompts]))
    ids = torch.tensor([token for prompt in prompts for token in prompt])
    positions = torch.cat([torch.arange(len(prompt)) for prompt in prompts])
    logits = model.logits(model.hidden_states(ids, positions))
    return {
        "logits": logits.numpy(),
        "heads": (model.heads, model.kv_heads),
        "vocab": (model.vocab_start, model.vocab_end),
        "bytes": model.shard_bytes,
        "sizes": (model.layers, model.head_dim, model.hidden_size, model.vocab_size),
    }


@pytest.fixture(scope="package")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A folder and Hugging Face's logits for every model."""
    models: Saved = {}
    for number, name in enumerate(MODELS):
        folder = tmp_path_factory.mktemp(f"model{number}")
        models[name] = folder, reference_logits(save_model(name, folder), PROMPTS).numpy()
    return models


def gathered(ranks: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """The ranks' logits beside each other, after checking that their vocabulary ranges tile the whole."""
    edges = [edge for rank in ranks for edge in rank["vocab"]]
    assert edges[0] == 0
    assert edges[-1] == ranks[0]["sizes"][3]
    assert edges[1:-1:2] == edges[2:-1:2]
    return np.concatenate([rank["logits"] for rank in ranks], axis=1)


def assert_same(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.quick), 3], scope="package")
def pool(request: pytest.FixtureRequest) -> RankPool:
    """Groups of each size in turn."""
    group: RankPool = request.getfixturevalue(f"ranks{request.param}")
    return group


@pytest.mark.parametrize("name", MODELS)
def test_a_sharded_model_gives_hugging_faces_logits(name: str, pool: RankPool, saved: Saved) -> None:
    folder, theirs = saved[name]
    ranks = pool.run(local_logits, folder, PROMPTS)
    assert_same(gathered(ranks), theirs)
    assert all(heads >= 1 and kv_heads >= 1 for heads, kv_heads in (rank["heads"] for rank in ranks))


@pytest.mark.parametrize("name", MODELS)
def test_so_does_one_whose_mlp_evens_out_the_ranks(name: str, ranks2: RankPool, saved: Saved) -> None:
    folder, theirs = saved[name]
    assert_same(gathered(ranks2.run(local_logits, folder, PROMPTS, True)), theirs)

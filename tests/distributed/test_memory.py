"""What a rank holds in memory, as shares of the model's bytes, for a tied 350M-parameter Llama on two ranks."""

import gc
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from serving.config import load_config
from serving.engine.distributed.collectives import Collectives
from serving.engine.engine import build_engine
from tests.distributed.ranks import RankPool
from tests.engine.smaps import flags_of, needs_huge_pages


@pytest.fixture(scope="module")
def model_350m(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model350m")
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=49152,
                hidden_size=1024,
                intermediate_size=2816,
                num_hidden_layers=24,
                num_attention_heads=16,
                num_key_value_heads=8,
                max_position_embeddings=4096,
                tie_word_embeddings=True,
            )
        ).bfloat16()
    model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(0.01)
    model.save_pretrained(folder)
    return folder


def measure(collectives: Collectives, folder: Path, cache: Path | None) -> dict[str, Any]:
    """On a rank: private bytes and the peak of resident bytes that loading adds."""
    shard_cache = None if cache is None else str(cache)
    config = load_config({"model": {"path": str(folder), "shard_cache": shard_cache}})
    import deepspeed  # noqa: F401  an idle rank has imported it

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    process = psutil.Process()
    idle, idle_resident = process.memory_full_info().uss, process.memory_info().rss
    engine = build_engine(config, collectives, generation=1, device=torch.device("cpu"))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    gc.collect()
    private = process.memory_full_info().uss
    return {"private": private - idle, "peak": peak - idle_resident, "shard": engine.shard_bytes}


def flags_of_all_weights(collectives: Collectives, folder: Path) -> list[list[str]]:
    """On a rank: the kernel's flags of the memory that each weight lies in."""
    config = load_config({"model": {"path": str(folder), "shard_cache": None}})
    engine = build_engine(config, collectives, generation=1, device=torch.device("cpu"))
    return [flags_of(weight) for weight in engine._model.parameters()]


@needs_huge_pages
def test_weights_lie_in_huge_pages(model_350m: Path) -> None:
    pool = RankPool(2)
    try:
        ranks = pool.run(flags_of_all_weights, model_350m)
    finally:
        pool.close()
    assert all(flags and all("hg" in of_one for of_one in flags) for flags in ranks)


@pytest.mark.parametrize("cached", [False, True])
def test_a_rank_holds_its_share_and_loads_in_little_more(
    model_350m: Path, tmp_path_factory: pytest.TempPathFactory, cached: bool
) -> None:
    total = (model_350m / "model.safetensors").stat().st_size
    cache = tmp_path_factory.mktemp("shards") if cached else None
    for _ in range(2 if cached else 1):  # the second finds what the first wrote
        pool = RankPool(2)
        try:
            ranks = pool.run(measure, model_350m, cache)
        finally:
            pool.close()
        for rank in ranks:
            shares = {name: round(size / total, 3) for name, size in rank.items()}
            print(f"shares of the model's {total} bytes: {shares}")
            assert shares["private"] <= 0.62
            assert shares["peak"] <= 0.8

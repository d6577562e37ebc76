"""How far bfloat16 logits are from float32's, ours and Hugging Face's: `python -m tests.distributed.precision`.

The text is this project's README, in pieces of 256 tokens; every position of every piece counts.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from serving.config import Config
from serving.engine.attention.base import AttentionMetadata
from serving.engine.distributed.collectives import Collectives
from serving.engine.engine import build_engine
from tests.distributed.ranks import RankPool

LENGTH, PIECES = 256, 8


def reference(folder: str, pieces: list[list[int]], dtype: torch.dtype) -> Tensor:
    """Hugging Face's logits, float32 [pieces * LENGTH, vocabulary]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([piece])).logits[0].float() for piece in pieces])


def sharded(collectives: Collectives, folder: str, pieces: list[list[int]], dtype: str, native: bool) -> Tensor:
    """On a rank: the logits of its part of the vocabulary."""
    tree = {"model": {"path": folder, "dtype": dtype, "max_model_len": LENGTH, "shard_cache": None}}
    engine = build_engine(
        Config.model_validate(tree | {"engine": {"kv_cache_gib": 0.1, "native_kernels": native}}),
        collectives,
        1,
        torch.device("cpu"),
    )
    places = torch.arange(LENGTH)
    found = []
    with torch.inference_mode():
        for piece in pieces:
            ids = torch.tensor(piece)
            tables = torch.arange(LENGTH // 16, dtype=torch.int32).repeat(LENGTH, 1)
            engine.attention.begin(AttentionMetadata(places, places, tables, places.int(), LENGTH, LENGTH, LENGTH, []))
            found.append(engine._model.logits(engine._model.hidden_states(ids, places)).clone())
    return torch.cat(found)


def main() -> None:
    """Print a line for each way to compute."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    folder = parser.parse_args().model
    ids = AutoTokenizer.from_pretrained(folder)(Path("README.md").read_text(encoding="utf-8"))["input_ids"]
    pieces = [ids[i * LENGTH : (i + 1) * LENGTH] for i in range(PIECES)]
    truth = reference(folder, pieces, torch.float32)
    ways = {"Hugging Face, bfloat16": reference(folder, pieces, torch.bfloat16)}
    pool = RankPool(2)
    try:
        for name, dtype, native in (
            ("two ranks, our kernels, bfloat16", "bfloat16", True),
            ("two ranks, torch's operators, bfloat16", "bfloat16", False),
            ("two ranks, our kernels, float32", "float32", True),
        ):
            ways[name] = torch.cat(pool.run(sharded, folder, pieces, dtype, native, timeout_s=600), dim=1)
    finally:
        pool.close()
    for name, logits in ways.items():
        off = (logits - truth).abs()
        same = (logits.argmax(1) == truth.argmax(1)).float().mean()
        print(f"{name:40s} mean |difference| {off.mean():.4f}, largest {off.max():.3f}, same choice {100 * same:.2f} %")


if __name__ == "__main__":
    main()

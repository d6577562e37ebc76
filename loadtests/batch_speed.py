"""The same 512 prompts by three ways, in alternating rounds: `python -m loadtests.batch_speed --vllm VENV --model DIR`.

`gangway batch`, Gangway's own `/v1/completions` at 32 at a time, and vLLM's offline `LLM.generate`, which gets both
cores in one process. Tokens drawn a second, without the time to load. Nothing else should run meanwhile.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from loadtests.side_by_side import OFFLINE, ours, running

ROWS, TOKENS_OUT, AT_A_TIME = 512, 64, 32
WORDS = (8, 240)
"""Fewest and most words of a prompt."""
WORD_LIST = ("sea", "ship", "harbour", "rope", "captain", "storm", "island", "light", "fish", "north", "anchor", "tide")
URL = "http://127.0.0.1:8300"
SUMMARY = re.compile(r" s, ([\d.]+) tokens/s")
OFFLINE_SCRIPT = """
import json, sys, time
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    prompts = [json.loads(line)["body"]["prompt"] for line in open(sys.argv[2])]
    model = LLM(sys.argv[1], dtype="bfloat16", max_model_len=2048)
    began = time.monotonic()
    answers = model.generate(prompts, SamplingParams(temperature=0, max_tokens=int(sys.argv[3]), ignore_eos=True))
    print("speed", sum(len(one.outputs[0].token_ids) for one in answers) / (time.monotonic() - began), flush=True)
"""


def write_rows(path: Path, seed: int) -> list[dict[str, Any]]:
    """Prompts of mixed length in OpenAI's batch format; returns what each asks of `/v1/completions`."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORD_LIST, k=draw.randint(*WORDS))) for _ in range(ROWS)]
    fixed = {"max_tokens": TOKENS_OUT, "temperature": 0, "ignore_eos": True}
    bodies: list[dict[str, Any]] = [{"prompt": text, **fixed} for text in texts]
    rows = [{"custom_id": str(i), "url": "/v1/completions", "body": body} for i, body in enumerate(bodies)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return bodies


def batch(asked: argparse.Namespace, source: Path) -> float:
    """What `gangway batch` says of itself."""
    config, *overrides = ours(asked)[2:]
    command = [*ours(asked)[:1], "batch", config, str(source), str(source.with_suffix(".out")), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(SUMMARY.findall(done.stdout)[-1])


def completions(asked: argparse.Namespace, bodies: list[dict[str, Any]]) -> float:
    """The same requests over HTTP."""
    with running(ours(asked), f"{URL}/readyz", {}):
        return asyncio.run(_ask_all(bodies))


async def _ask_all(bodies: list[dict[str, Any]]) -> float:
    left, drawn = iter(bodies), 0

    async def worker(client: httpx.AsyncClient) -> None:
        nonlocal drawn
        for body in left:
            answer = await client.post("/v1/completions", json=body)
            drawn += answer.raise_for_status().json()["usage"]["completion_tokens"]

    async with httpx.AsyncClient(base_url=URL, timeout=600, trust_env=False) as client:
        began = time.monotonic()
        await asyncio.gather(*(worker(client) for _ in range(AT_A_TIME)))
        return drawn / (time.monotonic() - began)


def offline(asked: argparse.Namespace, source: Path) -> float:
    """vLLM without a server, in its own environment."""
    script = source.with_name("offline.py")
    script.write_text(OFFLINE_SCRIPT)
    python = [str(asked.vllm / "bin" / "python"), str(script)]
    environment = os.environ | OFFLINE | {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "0-1"}
    command = [*python, str(asked.model), str(source), str(TOKENS_OUT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(re.findall(r"^speed ([\d.]+)", done.stdout, re.MULTILINE)[0])


def compare(asked: argparse.Namespace) -> None:
    """Run the rounds; print every figure as it comes, and the medians."""
    results: dict[str, list[float]] = {}
    for seed in range(asked.rounds):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "rows.jsonl"
            bodies = write_rows(source, seed)
            ways: dict[str, Callable[[], float]] = {
                "gangway batch": lambda: batch(asked, source),  # noqa: B023  called before the loop goes on
                "/v1/completions": lambda: completions(asked, bodies),  # noqa: B023
                "LLM.generate": lambda: offline(asked, source),  # noqa: B023
            }
            for name, measure in ways.items():
                results.setdefault(name, []).append(measure())
                print(f"{name:16s} {results[name][-1]:.0f} tokens/s", flush=True)
    medians = {name: statistics.median(speeds) for name, speeds in results.items()}
    print(f"\nmedians of {asked.rounds} rounds, tokens/s:")
    for name, speed in medians.items():
        print(f"  {name:16s} {speed:.0f}, batch {medians['gangway batch'] / speed:.2f} times")


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", type=Path, required=True, help="environment that vLLM is installed in")
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of Gangway")
    compare(parser.parse_args())


if __name__ == "__main__":
    main()

"""Gangway and vLLM on this machine in alternating rounds: `python -m loadtests.side_by_side --vllm VENV --model DIR`.

vLLM's own benchmark client loads both over HTTP. vLLM is started once and stopped (SIGSTOP) while Gangway has the
machine; Gangway is started again for each of its rounds. Nothing else should run meanwhile.
"""

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CASES = ("64:64:1:6", "64:64:8:32", "64:64:32:96", "512:64:8:16")
START_TIMEOUT_S = 600.0
OFFLINE = {"HF_HUB_OFFLINE": "1"}
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Both servers are on this machine, which no proxy knows."""
FIGURES = {
    "tokens/s": re.compile(r"Output token throughput.*?([\d.]+)\s*$", re.MULTILINE),
    "TTFT ms": re.compile(r"Median TTFT.*?([\d.]+)\s*$", re.MULTILINE),
    "TPOT ms": re.compile(r"Median TPOT.*?([\d.]+)\s*$", re.MULTILINE),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One load: IN:OUT:CONCURRENCY:PROMPTS, and :PREFIX for prompts that begin alike."""

    tokens_in: int
    tokens_out: int
    concurrency: int
    prompts: int
    prefix: int = 0

    @classmethod
    def parse(cls, text: str) -> "Case":
        return cls(*map(int, text.split(":")))

    def __str__(self) -> str:
        shared = f" after {self.prefix} shared" if self.prefix else ""
        return f"{self.tokens_in} in{shared}, {self.tokens_out} out, {self.concurrency} at a time"


@dataclass(frozen=True, slots=True)
class Target:
    """A server as the client sees it."""

    url: str
    model: str


def load(vllm: Path, target: Target, tokenizer: Path, case: Case, seed: int) -> dict[str, float]:
    """What the client measured. Raises `RuntimeError` unless every request succeeded."""
    command = [vllm / "bin" / "vllm", "bench", "serve", "--backend", "openai", "--base-url", target.url]
    command += ["--model", target.model, "--tokenizer", tokenizer, "--dataset-name", "random"]
    command += ["--random-input-len", case.tokens_in, "--random-output-len", case.tokens_out]
    command += ["--random-prefix-len", case.prefix, "--num-prompts", case.prompts]
    command += ["--max-concurrency", case.concurrency, "--ignore-eos", "--seed", seed, "--temperature", 0]
    done = subprocess.run(list(map(str, command)), env=os.environ | OFFLINE, capture_output=True, text=True, check=True)
    if not re.search(rf"Successful requests:\s+{case.prompts}\s", done.stdout):
        raise RuntimeError(f"{target.url}: {done.stdout}")
    return {name: float(pattern.findall(done.stdout)[0]) for name, pattern in FIGURES.items()}


@contextmanager
def running(command: list[str], health: str, environment: dict[str, str]) -> Iterator[tuple[int, float]]:
    """A server in a session of its own, until the context's end; yields its process group and how long it took."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process.pid, wait_for(health, process, time.monotonic())
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                os.kill(process.pid, signal.SIGINT)
            process.wait(timeout=120)


def wait_for(health: str, process: subprocess.Popen[bytes], began: float) -> float:
    """Seconds until it answers."""
    while time.monotonic() - began < START_TIMEOUT_S:
        if process.poll() is not None:
            break
        with suppress(urllib.error.URLError, ConnectionError), DIRECTLY.open(health, timeout=5):
            return time.monotonic() - began
        time.sleep(0.2)
    raise RuntimeError(f"{' '.join(process.args)} does not answer {health}")  # type: ignore[arg-type]


def peer(asked: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The command that serves the model with vLLM, and its environment."""
    command = [str(asked.vllm / "bin" / "vllm"), "serve", str(asked.model), "--port", "8200", "--dtype", "bfloat16"]
    command += ["--max-model-len", "2048", "--served-model-name", "m"]
    command += ["--tensor-parallel-size", str(asked.peer_tensor_parallel)]
    return command, OFFLINE | {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": asked.peer_threads}


def ours(asked: argparse.Namespace) -> list[str]:
    """The command that serves it with Gangway."""
    settings = [f"model.path={asked.model}", "model.served_name=m", "http.port=8300", *asked.set]
    overrides = [part for setting in settings for part in ("--set", setting)]
    return [str(Path(sys.executable).with_name("gangway")), "serve", "configs/local.yaml", *overrides]


def compare(asked: argparse.Namespace) -> None:
    """Run the rounds; print every figure as it comes, and the medians."""
    cases = [Case.parse(text) for text in asked.cases]
    results: dict[tuple[str, Case], list[dict[str, float]]] = {}

    def measure(name: str, target: Target, number: int) -> None:
        # A seed of its own for each: the prompts of one seed begin alike, and would be in a prefix cache by then.
        for seed, case in enumerate(cases, start=number * len(cases)):
            figures = load(asked.vllm, target, asked.model, case, seed)
            results.setdefault((name, case), []).append(figures)
            print(f"{name:8s} {case}: ", ", ".join(f"{key} {value:g}" for key, value in figures.items()), flush=True)

    command, environment = peer(asked)
    with running(command, "http://127.0.0.1:8200/health", environment) as (group, seconds):
        print(f"vLLM     ready after {seconds:.1f} s", flush=True)
        for number in range(asked.rounds):
            measure("vLLM", Target("http://127.0.0.1:8200", "m"), number)
            os.killpg(group, signal.SIGSTOP)
            with running(ours(asked), "http://127.0.0.1:8300/readyz", {}) as (_own, own_seconds):
                print(f"Gangway  ready after {own_seconds:.1f} s", flush=True)
                measure("Gangway", Target("http://127.0.0.1:8300", "m"), number)
            os.killpg(group, signal.SIGCONT)
    print(f"\nmedians of {asked.rounds} rounds, output tokens/s:")
    for case in cases:
        theirs, mine = (
            statistics.median(one["tokens/s"] for one in results[name, case]) for name in ("vLLM", "Gangway")
        )
        print(f"  {case}: vLLM {theirs:.0f}, Gangway {mine:.0f}, {mine / theirs:.2f} times")


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", type=Path, required=True, help="environment that vLLM is installed in")
    parser.add_argument("--model", type=Path, required=True, help="model folder, with its tokenizer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-tensor-parallel", type=int, default=1)
    parser.add_argument("--peer-threads", default="0-1", help="cores: 0-1 for one process on two, 0|1 for two ranks")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of Gangway")
    parser.add_argument("cases", nargs="*", default=CASES, metavar="IN:OUT:CONCURRENCY:PROMPTS[:PREFIX]")
    compare(parser.parse_args())


if __name__ == "__main__":
    main()

"""An engine on a pool's ranks, fed by a script instead of a gateway: what arrives in which step, and what comes out."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from serving.config import load_config
from serving.engine.distributed.collectives import Collectives
from serving.engine.engine import build_engine
from serving.messages import Beat, Cancel, EngineStats, StepOutput, Submit, ToEngine, ToGateway, TokenLogprobs

PEER = b"script"
Script = dict[int, list[Submit | Cancel]]
"""What arrives before the step of that number (counted from 0); a step without work waits for the next arrival."""


class ScriptedLink:
    """Stands at the engine's border: hands in the script, collects the answers, stops when all have ended."""

    def __init__(self, script: Script, stop: threading.Event) -> None:
        self._script = dict(script)
        self._stop = stop
        self._polls = 0
        self._open: set[str] = set()
        self.tokens: dict[str, list[int]] = {}
        self.logprobs: dict[str, list[TokenLogprobs]] = {}
        self.ends: dict[str, str] = {}
        self.embeddings: dict[str, bytes] = {}
        self.stats: EngineStats | None = None
        self._settled = False

    def receive(self, timeout_s: float) -> list[tuple[bytes, ToEngine]]:
        del timeout_s
        arrivals: list[ToEngine] = [Beat(), *self._script.pop(self._polls, [])]
        self._polls += 1
        for message in arrivals:
            if isinstance(message, Submit):
                self._open.add(message.id)
                self.tokens[message.id] = []
            elif isinstance(message, Cancel):
                self._open -= set(message.ids)
        if not self._script and not self._open:
            if self._settled:  # one idle step, so that followers forget and the pulse tells the final counts
                self._stop.set()
            self._settled = True
        return [(PEER, message) for message in arrivals]

    def send(self, peer: bytes, message: ToGateway) -> bool:
        assert peer == PEER
        self.stats = message.stats
        for delta in message.deltas if isinstance(message, StepOutput) else []:
            self.tokens[delta.id] += delta.tokens
            self.logprobs.setdefault(delta.id, []).extend(delta.logprobs or [])
            if delta.embedding is not None:
                self.embeddings[delta.id] = delta.embedding
            end = delta.error or delta.finish
            if end is not None:
                assert delta.id not in self.ends, "a request ends once"
                self.ends[delta.id] = end
                self._open.discard(delta.id)
        return True


def run_script(collectives: Collectives, folder: Path, script: Script, settings: dict[str, Any]) -> dict[str, Any]:
    """On a rank: load, run the script to its end, and return what came out and what this rank drew."""
    tree = {"model": {"path": str(folder), "dtype": "float32", "max_model_len": 64, "shard_cache": None}}
    settings = {"engine": {"kv_cache_gib": 0.01}, **settings}
    for section, values in settings.items():
        tree[section] = {**tree.get(section, {}), **values}
    config = load_config(tree)
    engine = build_engine(config, collectives, generation=1, device=torch.device("cpu"))
    drawn: list[Sequence[int]] = []
    execute = engine.runner.execute

    def recorded(plan: Any) -> Any:
        sampled = execute(plan)
        drawn.append(sampled.tokens)
        return sampled

    engine.runner.execute = recorded  # type: ignore[method-assign]
    if collectives.rank:
        engine.follow()
        return {"drawn": drawn}
    stop = threading.Event()
    link = ScriptedLink(script, stop)
    engine.lead(link, stop)  # type: ignore[arg-type]
    assert link.stats is not None
    return {
        "drawn": drawn,
        "tokens": link.tokens,
        "ends": link.ends,
        "embeddings": link.embeddings,
        "logprobs": {id_: [(entry.chosen, entry.top) for entry in found] for id_, found in link.logprobs.items()},
        "preemptions": link.stats.preemptions,
        "prefix_hits": link.stats.prefix_hit_tokens,
        "blocks": link.stats.kv_blocks_used,
        "native": type(engine.attention).__name__ == "NativeAttention",
    }

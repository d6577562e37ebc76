"""What a job runs with, and what its output depends on. Without Ray: it is known before a cluster is."""

import hashlib
from dataclasses import asdict

import msgspec

from serving.batch.input.jsonl import Source
from serving.batch.input.parquet import ParquetSource
from serving.batch.rows import Task
from serving.config import Config, HttpConfig, SecurityConfig, load_config

MAX_SEQUENCES = 800
"""Most sequences under way: they must all fit the link at once when the group comes back."""


def batch_config(config: Config) -> Config:
    """The configuration of a job: a group of its own beside one that serves, no keys, and a queue for the window.

    A job listens nowhere, so where a server would listen goes with its keys: the one is refused without the other. All
    of it is checked here, as the processes of the group check what they are sent. Raises `ConfigError`.
    """
    running = min(config.batch.max_running, config.engine.max_batched_tokens)
    balance = config.batch.balance_mlp and config.parallel.gpus_per_rank == 0
    listening = {name: HttpConfig.model_fields[name].default for name in ("host", "port")}
    changes = {
        "name": f"{config.name[:34]}-batch",
        "parallel": config.parallel.model_copy(update={"balance_mlp": balance}),
        "engine": config.engine.model_copy(update={"max_running": running}),
        "http": config.http.model_copy(update=listening | {"max_waiting": max(64, MAX_SEQUENCES - running)}),
        "security": SecurityConfig(),
    }
    return load_config(config.model_copy(update=changes).model_dump(mode="json"))


def job_key(config: Config, source: Source | ParquetSource, task: Task) -> str:
    """Stands for all that the output depends on: the input, the model, and how it computes."""
    model = config.model.model_dump(mode="json", exclude={"shard_cache"})
    split = [config.parallel.tensor_parallel_size, config.parallel.balance_mlp]
    facts = [source.facts(), asdict(task), model, split, config.http.max_inputs]
    return hashlib.blake2b(msgspec.json.encode(facts, order="sorted"), digest_size=16).hexdigest()

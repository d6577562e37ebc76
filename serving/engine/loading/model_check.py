"""Finds what is wrong with a model folder before any process is started: reads headers, never a tensor."""

import torch

from serving.config import ModelConfig
from serving.engine.loading.checkpoint import open_checkpoint
from serving.engine.loading.model_config import eos_token_ids, read_config
from serving.engine.loading.skeleton import build_skeleton
from serving.engine.models.families import kv_replicas


def check_model(config: ModelConfig, tensor_parallel_size: int) -> None:
    """Raises `ModelError` with one sentence if loading would fail for a reason that the files show. Takes seconds."""
    checkpoint = open_checkpoint(config.path)
    hf, family = read_config(config)
    kv_replicas(hf, family, tensor_parallel_size)
    eos_token_ids(config.path, hf)
    build_skeleton(config.path, hf, family, 1, getattr(torch, config.dtype)).check(checkpoint)

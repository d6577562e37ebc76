"""Which backend computes a rank's attention: the CPU kernels or flash attention where they can, else plain torch."""

import torch
from torch import Tensor

from serving.config import EngineConfig
from serving.engine.attention import cpu_backend, flash_backend
from serving.engine.attention.base import BatchAttention
from serving.engine.attention.kv_cache import KVCache, KVShape
from serving.engine.attention.torch_backend import RaggedAttention


def cpu_kernels_apply(config: EngineConfig, shape: KVShape, device: torch.device) -> bool:
    """Whether the CPU kernels are asked for, and apply."""
    return config.native_kernels and cpu_backend.supports(shape, config.block_size, device)


def make_attention(
    config: EngineConfig, shape: KVShape, room: Tensor, threads: int, softcap: float | None
) -> BatchAttention:
    """The attention over the cache in `room`, which was reserved for this shape. `softcap`: of any layer's scores."""
    if cpu_kernels_apply(config, shape, room.device):
        return cpu_backend.NativeAttention(shape, room, config.block_size, threads)
    cache = KVCache(shape, room, config.block_size)
    if flash_backend.supports(shape, config.block_size, room.device, softcap):
        return flash_backend.FlashAttention(cache)
    return RaggedAttention(cache)

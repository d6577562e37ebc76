"""The ragged attention on the native kernels, over a cache in the kernels' own order of elements."""

import torch
from torch import Tensor

from serving.engine.attention.base import AttentionMetadata, AttentionSpec
from serving.engine.attention.kv_cache import KVShape
from serving.engine.kernels import abi, ops


def supports(shape: KVShape, block_size: int, device: torch.device) -> bool:
    """Whether the kernels can hold and attend to this cache."""
    return (
        ops.available()
        and device.type == "cpu"
        and shape.dtype in (torch.bfloat16, torch.float32)
        and shape.head_dim % abi.LANES == 0
        and block_size % abi.LANES == 0
    )


class NativeAttention:
    """As `RaggedAttention`; a token's result is bit-identical in every batch."""

    def __init__(self, shape: KVShape, room: Tensor, block_size: int, threads: int) -> None:
        """`room`: what was reserved for whole blocks of this size."""
        self._shape = shape
        self._threads = threads
        self._layers = [
            abi.LayerCache(keys, values, block_size, shape.kv_heads, shape.head_dim) for keys, values in room
        ]
        self._scores = ops.scratch_for(0, threads)
        self.step: abi.Step | None = None
        """Of the batch that `begin` named."""

    def begin(self, batch: AttentionMetadata) -> None:
        """Every call until the next `begin` belongs to this batch."""
        if batch.longest > self._scores.shape[-1]:
            self._scores = ops.scratch_for(2 * batch.longest, self._threads)
        self.step = abi.Step(batch.slots, batch.positions, batch.tables, batch.table_of, self._scores, batch.wanted)

    def cache(self, layer: int) -> abi.LayerCache:
        """Keys and values of one layer."""
        return self._layers[layer]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        """[T, heads, D], [T, kv_heads, D] twice -> [T, heads, D]."""
        assert self.step is not None, "begin() names the batch first"
        heads = query.shape[1]
        cache = self._layers[layer]
        ops.keep(cache, self.step, key.flatten(1), value.flatten(1))
        mixed = ops.attend(cache, query.flatten(1), heads, self.step, spec.scale, spec.sliding_window, spec.softcap)
        return mixed.view(-1, heads, self._shape.head_dim)

"""The ragged attention on the native kernels, over a cache in the kernels' own order of elements."""

import torch
from torch import Tensor

from serving.engine.attend import AttentionSpec
from serving.engine.batch import Batch
from serving.engine.kv_cache import KVShape, reserve
from serving.engine.native import ops


def supports(shape: KVShape, block_size: int, device: torch.device) -> bool:
    """Whether the kernels can hold and attend to this cache."""
    return (
        ops.available()
        and device.type == "cpu"
        and shape.dtype in (torch.bfloat16, torch.float32)
        and shape.head_dim % ops.LANES == 0
        and block_size % ops.LANES == 0
    )


class NativeAttention:
    """As `RaggedAttention`; a token's result does not depend on its batch, to the bit."""

    def __init__(self, shape: KVShape, num_blocks: int, block_size: int, threads: int) -> None:
        self._shape = shape
        self._threads = threads
        self._layers = [
            ops.LayerCache(keys, values, block_size, shape.kv_heads, shape.head_dim)
            for keys, values in reserve(shape, num_blocks * block_size, torch.device("cpu"))
        ]
        self._batch: Batch | None = None
        self._scratch = ops.scratch_for(0, threads)

    def begin(self, batch: Batch) -> None:
        """Every call until the next `begin` belongs to this batch."""
        self._batch = batch
        if batch.longest > self._scratch.shape[-1]:
            self._scratch = ops.scratch_for(2 * batch.longest, self._threads)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        """[T, heads, D], [T, kv_heads, D] twice -> [T, heads, D]."""
        heads = query.shape[1]
        mixed = self.rows(layer, query.flatten(1), key.flatten(1), value.flatten(1), heads, spec)
        return mixed.view(-1, heads, self._shape.head_dim)

    def rows(self, layer: int, query: Tensor, key: Tensor, value: Tensor, heads: int, spec: AttentionSpec) -> Tensor:
        """The same on [T, heads * D], [T, kv_heads * D] twice -> [T, heads * D]; rows may be apart."""
        batch = self._batch
        assert batch is not None, "begin() names the batch first"
        cache = self._layers[layer]
        ops.keep(cache, batch.slots, key, value)
        places = ops.Places(batch.tables, batch.table_of, batch.positions)
        return ops.attend(cache, query, heads, places, spec, self._scratch)

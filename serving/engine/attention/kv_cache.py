"""One rank's keys and values, in blocks. Which block belongs to whom is decided in `scheduling.block_manager`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from serving.engine.host_memory import mapped


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one token's keys and values take on one rank."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    def blocks_in(self, kv_cache_gib: float, block_size: int) -> int:
        """Whole blocks that fit into `kv_cache_gib` GiB on this rank."""
        per_token = 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize
        return int(kv_cache_gib * 2**30) // max(1, per_token * block_size)


def reserve(shape: KVShape, tokens: int, device: torch.device) -> Tensor:
    """Room for keys and values of `tokens` tokens: [layers, 2, tokens * kv_heads * head_dim].

    It reads as zeros, since a masked place still meets a weight of 0, and 0 times an old NaN would be NaN. On a CPU it
    is mapped, not filled, in huge pages: a page is taken when a block in it is first written, or by `populate`.
    """
    size = tokens * shape.kv_heads * shape.head_dim
    if device.type == "cpu":
        room = mapped(shape.layers * 2 * size * shape.dtype.itemsize, huge=True).view(shape.dtype)
    else:
        room = torch.zeros(shape.layers * 2 * size, dtype=shape.dtype, device=device)
    return room.view(shape.layers, 2, size)


class KVCache:
    """Keys and values of all layers. A token's place is its slot: block * block_size + offset."""

    def __init__(self, shape: KVShape, room: Tensor, block_size: int) -> None:
        """`room`: what was reserved for whole blocks of this size."""
        self.block_size = block_size
        size = (-1, shape.kv_heads, shape.head_dim)
        self._keys = [keys.view(size) for keys, _ in room]
        self._values = [values.view(size) for _, values in room]

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Keep `key` and `value`, both [T, kv_heads, head_dim], at `slots`, int64 [T]."""
        self._keys[layer].index_copy_(0, slots, key)
        self._values[layer].index_copy_(0, slots, value)

    def blocks(self, layer: int) -> tuple[Tensor, Tensor]:
        """All of a layer, block by block: two of [blocks, block_size, kv_heads, head_dim]."""
        keys, values = self._keys[layer], self._values[layer]
        shape = (-1, self.block_size, *keys.shape[1:])
        return keys.view(shape), values.view(shape)

    def read(self, layer: int, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` tokens of block tables [..., n]: two of [..., length, kv_heads, head_dim]."""
        offsets = torch.arange(self.block_size, device=blocks.device)
        slots = (blocks.unsqueeze(-1).long() * self.block_size + offsets).flatten(-2)[..., :length]
        return self._keys[layer][slots], self._values[layer][slots]

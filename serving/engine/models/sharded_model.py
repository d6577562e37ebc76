"""One rank's share of a model: Hugging Face's layers around our own products, embedding, head and attention."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from serving.engine.attention.base import Attend
from serving.engine.attention.hugging_face import attach
from serving.engine.attention.kv_cache import KVShape
from serving.engine.layers.vocabulary import OutputHead, VocabSlice


class ShardedModel(nn.Module):
    """Computes hidden states of a ragged batch and this rank's logits. `attach` comes first."""

    def __init__(
        self, base: Any, head: OutputHead, vocab: VocabSlice, *, heads: int, kv_heads: int, head_dim: int
    ) -> None:
        """`heads`, `kv_heads`: of this rank; both may differ between ranks."""
        super().__init__()
        self.base = base
        self.head = head
        self.layers = int(base.config.num_hidden_layers)
        self.heads = heads
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.hidden_size = head.weight.shape[1]
        self.vocab_size = int(base.config.vocab_size)
        self.vocab_start, self.vocab_end = vocab.start, vocab.end
        self.eos_token_ids: frozenset[int] = frozenset()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights and activations."""
        return self.head.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.head.weight.device

    @property
    def shard_bytes(self) -> int:
        """Bytes of this rank's weights, a tied head counted once."""
        return sum(weight.nbytes for weight in self.parameters())

    @property
    def kv_shape(self) -> KVShape:
        """What one token's keys and values take on this rank."""
        return KVShape(layers=self.layers, kv_heads=self.kv_heads, head_dim=self.head_dim, dtype=self.dtype)

    def attach(self, attend: Attend) -> None:
        """Let every layer's attention call `attend` from now on."""
        attach(self.base, attend)

    def hidden_states(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """A ragged batch, its sequences one after another: int64 [T] twice -> [T, hidden], final norm included."""
        output = self.base(input_ids=input_ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False)
        return cast(Tensor, output[0].squeeze(0))

    def logits(self, hidden: Tensor) -> Tensor:
        """[S, hidden] -> float32 [S, vocab_end - vocab_start], complete: scaled, capped, with the head's bias."""
        return cast(Tensor, self.head(hidden))

    def assign(self, name: str, tensor: Tensor) -> None:
        """Put `tensor` in the place of the parameter `name`."""
        owner, _, leaf = name.rpartition(".")
        setattr(self.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))

    def unfilled(self) -> Iterator[str]:
        """Names of parameters and buffers that have no values yet."""
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            if tensor.is_meta:
                yield name

"""Attention and MLP blocks of the Llama kind as a few kernel calls each, where Hugging Face's code makes dozens.

Only for classes named here, whose code was read: queries, keys and values from plain products, rotation by halves,
no norm in between; gate and up projections without bias.
"""

from typing import Any

import torch
from torch import Tensor, nn

from serving.engine.attend import AttentionSpec
from serving.engine.linear import ShardedLinear
from serving.engine.native import ops
from serving.engine.native.attention import NativeAttention
from serving.engine.native.packed import PackedLinear, empty

ATTENTIONS = frozenset({"LlamaAttention", "MistralAttention", "Qwen2Attention", "GraniteAttention"})
MLPS = frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "GraniteMLP", "GemmaMLP", "Gemma2MLP", "Gemma3MLP"})
ACTIVATIONS = {"silu": ops.SILU, "swish": ops.SILU, "gelu_pytorch_tanh": ops.GELU_TANH}


class FusedAttention(nn.Module):
    """One product for queries, keys and values, the rotation in place, attention, and the output product."""

    def __init__(self, original: Any, heads: int, kv_heads: int, dim: int, threads: int) -> None:
        """`original`: the layer it stands for, its projections being `ShardedLinear`s; head counts are this rank's."""
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim
        self.width = (heads + 2 * kv_heads) * dim
        self.threads = threads
        weight = original.q_proj.weight
        self.qkv = empty(ops.packed_shape(self.width, weight.shape[1], weight.dtype), weight.dtype)
        self.bias = None if original.q_proj.bias is None else empty((self.width,), weight.dtype)
        output = original.o_proj
        self.out = PackedLinear(output.weight, output.bias, output.collectives, threads)
        self.layer_idx = original.layer_idx
        # Mistral's code keeps the window in its configuration, Qwen2's on each layer; Llama's and Granite's know none.
        owner = original.config if type(original).__name__ == "MistralAttention" else original
        self.spec = AttentionSpec(original.scaling, getattr(owner, "sliding_window", None), None)
        self.attend: NativeAttention

    def forward(
        self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> tuple[Tensor, None]:
        """[1, T, hidden] -> [1, T, hidden]; `position_embeddings` are a `HalfRotary`'s."""
        qkv = ops.product(hidden_states[0], self.qkv, self.width, self.bias, threads=self.threads)
        ops.rotate(qkv, self.heads + self.kv_heads, self.dim, *position_embeddings)
        first, second = self.heads * self.dim, (self.heads + self.kv_heads) * self.dim
        query, key, value = qkv[:, :first], qkv[:, first:second], qkv[:, second:]
        mixed = self.attend.rows(self.layer_idx, query, key, value, self.heads, self.spec)
        return self.out(mixed).unsqueeze(0), None


class HalfRotary(nn.Module):
    """Cosines and sines as the rotation kernel takes them, once a step for all layers: float32 [T, rotary / 2] each."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """`x` tells the device only: angles stay float32, where Hugging Face rounds them to the model's format."""
        cos, sin = self.original(x.new_empty(0, dtype=torch.float32), position_ids)
        half = cos.shape[-1] // 2
        return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


class FusedMLP(nn.Module):
    """One product for gate and up that ends in act(gate) * up, and the down product."""

    def __init__(self, original: Any, activation: int, threads: int) -> None:
        super().__init__()
        weight, down = original.gate_proj.weight, original.down_proj
        self.width = 2 * len(weight)
        self.gate_up = empty(ops.packed_shape(self.width, weight.shape[1], weight.dtype), weight.dtype)
        self.down = PackedLinear(down.weight, down.bias, down.collectives, threads)
        self.activation = activation
        self.threads = threads

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        rows = x.reshape(-1, x.shape[-1])
        gated = ops.product(rows, self.gate_up, self.width, None, self.activation, self.threads)
        down: Tensor = self.down(gated)
        return down.view(x.shape)


def fusable_attention(module: Any) -> bool:
    """Whether `FusedAttention` computes what `module` computes."""
    return type(module).__name__ in ATTENTIONS and all(
        isinstance(p, ShardedLinear) and ops.packable(p.weight)
        for p in (module.q_proj, module.k_proj, module.v_proj, module.o_proj)
    )


def fusable_mlp(module: Any, hidden_act: str) -> bool:
    """Whether `FusedMLP` computes what `module` computes."""
    if type(module).__name__ not in MLPS or hidden_act not in ACTIVATIONS:
        return False
    gate, up, down = module.gate_proj, module.up_proj, module.down_proj
    return (
        all(isinstance(p, ShardedLinear) and ops.packable(p.weight) for p in (gate, up, down))
        and gate.bias is None
        and up.bias is None
        and len(gate.weight) % ops.LANES == 0
    )

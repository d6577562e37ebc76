"""Swaps submodules of a loaded model for ones on the native kernels. Hugging Face's layer code stays in between.

What is not known to be the same is left alone: a model of any family runs, its fast parts fast.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from serving.engine.linear import ShardedLinear
from serving.engine.native import ops
from serving.engine.native.fused import (
    ACTIVATIONS,
    FusedAttention,
    FusedMLP,
    HalfRotary,
    fusable_attention,
    fusable_mlp,
)
from serving.engine.native.packed import NativeRMSNorm, PackedEmbedding, PackedHead, PackedLinear
from serving.engine.sharded_model import ShardedModel

RMS_NORMS = {
    "LlamaRMSNorm": 0.0,
    "MistralRMSNorm": 0.0,
    "Qwen2RMSNorm": 0.0,
    "Qwen3RMSNorm": 0.0,
    "GraniteRMSNorm": 0.0,
    "Phi3RMSNorm": 0.0,
    "GlmRMSNorm": 0.0,
    "GemmaRMSNorm": 1.0,
    "Gemma2RMSNorm": 1.0,
    "Gemma3RMSNorm": 1.0,
}
"""Classes that compute x / rms(x) * (weight + offset), by the offset."""


def swap(model: ShardedModel, threads: int) -> None:
    """Replace what the kernels can do in place; each weight is packed and let go before the next."""
    base = model.base
    _swap_attention(model, threads)
    activation = str(getattr(base.config, "hidden_activation", None) or getattr(base.config, "hidden_act", ""))

    def replacement(module: Any) -> nn.Module | None:
        if fusable_mlp(module, activation):
            return FusedMLP(module, ACTIVATIONS[activation], threads)
        if isinstance(module, ShardedLinear) and ops.packable(module.weight) and module.weight.numel():
            return PackedLinear(module, threads)
        return _norm(module)

    _replace(base, replacement)
    if ops.packable(model.head.weight):
        _swap_vocabulary(model, threads)


def _replace(parent: nn.Module, replacement: Callable[[Any], nn.Module | None]) -> None:
    """Offer every submodule, those nearer to the root first; what was replaced is not entered."""
    for name, child in list(parent.named_children()):
        swapped = replacement(child)
        if swapped is None:
            _replace(child, replacement)
        else:
            setattr(parent, name, swapped)


def _swap_attention(model: ShardedModel, threads: int) -> None:
    """All attention layers or none, as they share the rotary embedding, which then speaks to the kernels."""
    layers = [module for module in model.base.modules() if hasattr(module, "layer_idx")]
    if not (layers and all(map(fusable_attention, layers)) and hasattr(model.base, "rotary_emb")):
        return
    if getattr(model.base.config, "partial_rotary_factor", 1.0) not in (None, 1.0):
        return

    def replacement(module: Any) -> nn.Module | None:
        if not hasattr(module, "layer_idx"):
            return None
        return FusedAttention(module, model.heads, model.kv_heads, model.head_dim, threads)

    _replace(model.base, replacement)
    model.base.rotary_emb = HalfRotary(model.base.rotary_emb)


def _swap_vocabulary(model: ShardedModel, threads: int) -> None:
    """Pack the head; a tied embedding goes on sharing its storage."""
    embedding = model.base.get_input_embeddings()
    packed = nn.Parameter(ops.pack(model.head.weight), requires_grad=False)
    if embedding.weight is model.head.weight:
        model.base.set_input_embeddings(PackedEmbedding(embedding, packed))
    model.head = PackedHead(model.head, packed, threads)


def _norm(module: Any) -> nn.Module | None:
    offset = RMS_NORMS.get(type(module).__name__)
    if offset is None or module.weight.numel() % ops.LANES:
        return None
    eps: float = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return NativeRMSNorm(module.weight, eps, offset)

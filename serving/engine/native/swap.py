"""Swaps submodules of a model that has no weights yet for ones on the native kernels, and plans what these are made of.

Hugging Face's layer code stays in between. What is not known to be the same is left alone: a model of any family runs,
its fast parts fast.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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
from serving.engine.weights import Plan, Prepared, TensorSlice

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


def swap(model: ShardedModel, plan: Plan, threads: int) -> None:
    """Replace what the kernels can do, in place in `model` and `plan`."""
    Swap(model, plan, threads).run()


class Swap:
    """The work on one model."""

    def __init__(self, model: ShardedModel, plan: Plan, threads: int) -> None:
        self._model = model
        self._plan = plan
        self._threads = threads
        config = model.base.config
        self._act = str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", ""))
        self._fuses_attention = self._attention_is_fusable()

    def run(self) -> None:
        self._replace("base", self._model.base)
        if self._fuses_attention:
            self._model.base.rotary_emb = HalfRotary(self._model.base.rotary_emb)
        if ops.packable(self._model.head.weight):
            self._swap_vocabulary()

    def _attention_is_fusable(self) -> bool:
        """All attention layers or none, as they share the rotary embedding, which then speaks to the kernels."""
        base = self._model.base
        layers = [module for module in base.modules() if hasattr(module, "layer_idx")]
        return (
            bool(layers)
            and all(map(fusable_attention, layers))
            and hasattr(base, "rotary_emb")
            and getattr(base.config, "partial_rotary_factor", 1.0) in (None, 1.0)
        )

    def _replace(self, prefix: str, parent: nn.Module) -> None:
        """Offer every submodule, those nearer to the root first; what was replaced is not entered."""
        for name, child in list(parent.named_children()):
            path = f"{prefix}.{name}"
            swapped = self._swapped(path, child)
            if swapped is None:
                self._replace(path, child)
            else:
                setattr(parent, name, swapped)

    def _swapped(self, path: str, module: Any) -> nn.Module | None:
        if self._fuses_attention and hasattr(module, "layer_idx"):
            return self._attention(path, module)
        if fusable_mlp(module, self._act):
            return self._mlp(path, module)
        if isinstance(module, ShardedLinear) and ops.packable(module.weight):
            self._prepare(f"{path}.packed", ops.pack, f"{path}.weight")
            return PackedLinear(module.weight, module.bias, module.collectives, self._threads)
        offset = RMS_NORMS.get(type(module).__name__)
        if offset is None or module.weight.numel() % ops.LANES:
            return None
        eps: float = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
        return NativeRMSNorm(module.weight, eps, offset)

    def _attention(self, path: str, module: Any) -> FusedAttention:
        model = self._model
        projections = [f"{path}.{name}_proj" for name in "qkv"]
        self._prepare(f"{path}.qkv", ops.pack_joined, *(f"{name}.weight" for name in projections))
        if module.q_proj.bias is not None:
            self._prepare(f"{path}.bias", _joined, *(f"{name}.bias" for name in projections))
        self._output(f"{path}.o_proj", f"{path}.out")
        return FusedAttention(module, model.heads, model.kv_heads, model.head_dim, self._threads)

    def _mlp(self, path: str, module: Any) -> FusedMLP:
        self._prepare(f"{path}.gate_up", ops.pack_gated, f"{path}.gate_proj.weight", f"{path}.up_proj.weight")
        self._output(f"{path}.down_proj", f"{path}.down")
        return FusedMLP(module, ACTIVATIONS[self._act], self._threads)

    def _output(self, old: str, new: str) -> None:
        """A block's last product, under its new name."""
        self._prepare(f"{new}.packed", ops.pack, f"{old}.weight")
        if f"{old}.bias" in self._plan:
            self._plan[f"{new}.bias"] = self._plan.pop(f"{old}.bias")

    def _swap_vocabulary(self) -> None:
        """Pack the head; a tied embedding goes on sharing its storage."""
        model = self._model
        embedding = model.base.get_input_embeddings()
        if "head.weight" in self._plan:
            self._prepare("head.weight", ops.pack, "head.weight")
        else:
            path = next(name for name, module in model.named_modules() if module is embedding)
            self._prepare(f"{path}.weight", ops.pack, f"{path}.weight")
            model.base.set_input_embeddings(PackedEmbedding(embedding))
        model.head = PackedHead(model.head, self._threads)

    def _prepare(self, name: str, make: Callable[..., Tensor], *sources: str) -> None:
        """Plan the parameter `name` as made of those planned so far."""
        parts = []
        for source in sources:
            part = self._plan.pop(source)
            assert isinstance(part, TensorSlice)
            parts.append(part)
        rows = sum(part.shape[0] for part in parts)
        shape = (rows,) if make is _joined else ops.packed_shape(rows, parts[0].shape[1], self._model.dtype)
        self._plan[name] = Prepared(tuple(parts), shape, make)


def _joined(*biases: Tensor) -> Tensor:
    return torch.cat(biases)

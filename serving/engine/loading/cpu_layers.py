"""Replaces submodules of a model that has no weights yet by ones on the CPU kernels, and plans their weights.

Hugging Face's layer code stays in between. What is not known to be the same is left alone: a model of any family runs,
its fast parts fast.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from serving.engine.kernels import abi, ops
from serving.engine.layers.cpu_decoder import ACTIVATIONS, KINDS, FusedLayer, FusedLayers, HalfRotary, fusable
from serving.engine.layers.cpu_packed import RMS_NORMS, NativeRMSNorm, PackedEmbedding, PackedHead, PackedLinear, eps_of
from serving.engine.layers.linear import ShardedLinear
from serving.engine.loading.weights import Plan, Prepared, TensorSlice
from serving.engine.models.sharded_model import ShardedModel


def use_cpu_kernels(model: ShardedModel, plan: Plan, threads: int) -> None:
    """Replace what the kernels can do, in place in `model` and `plan`."""
    CpuLayerReplacer(model, plan, threads).run()


class CpuLayerReplacer:
    """The work on one model."""

    def __init__(self, model: ShardedModel, plan: Plan, threads: int) -> None:
        self._model = model
        self._plan = plan
        self._threads = threads
        config = model.base.config
        self._act = str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", ""))
        self._fuses_layers = self._layers_are_fusable()

    def run(self) -> None:
        self._replace("base", self._model.base)
        if self._fuses_layers:
            self._join_layers(self._model.base)
        if ops.packable(self._model.head.weight):
            self._replace_vocabulary()

    def _join_layers(self, base: Any) -> None:
        base.rotary_emb = HalfRotary(base.rotary_emb)
        turns_by_type = "layer_type" in inspect.signature(base.rotary_emb.original.forward).parameters
        base.layers = FusedLayers(
            list(base.layers), base.rotary_emb, base.config.layer_types if turns_by_type else None
        )

    def _layers_are_fusable(self) -> bool:
        """All layers or none, as they share the rotary embedding, which then speaks to the kernels."""
        base = self._model.base
        layers = list(getattr(base, "layers", []))
        return bool(layers) and all(fusable(layer, self._act) for layer in layers) and hasattr(base, "rotary_emb")

    def _replace(self, prefix: str, parent: nn.Module) -> None:
        """Offer every submodule, those nearer to the root first; what was replaced is not entered."""
        for name, child in list(parent.named_children()):
            path = f"{prefix}.{name}"
            replacement = self._replacement(path, child)
            if replacement is None:
                self._replace(path, child)
            else:
                setattr(parent, name, replacement)

    def _replacement(self, path: str, module: Any) -> nn.Module | None:
        if self._fuses_layers and type(module).__name__ in KINDS:
            return self._layer(path, module)
        if isinstance(module, ShardedLinear) and ops.packable(module.weight):
            self._prepare(f"{path}.packed", ops.pack, f"{path}.weight")
            return PackedLinear(module.weight, module.bias, module.collectives, self._threads)
        offset = RMS_NORMS.get(type(module).__name__)
        if offset is None or module.weight.numel() % abi.LANES:
            return None
        return NativeRMSNorm(module.weight, eps_of(module), offset)

    def _layer(self, path: str, module: Any) -> FusedLayer:
        """Its parameters are planned under the names that `FusedLayer` gives them."""
        kind, attention, mlp = KINDS[type(module).__name__], f"{path}.self_attn", f"{path}.mlp"
        projections = [f"{attention}.{name}_proj" for name in "qkv"]
        self._prepare(f"{path}.qkv", ops.pack_joined, *(f"{name}.weight" for name in projections))
        if module.self_attn.q_proj.bias is not None:
            self._prepare(f"{path}.qkv_bias", _joined, *(f"{name}.bias" for name in projections))
        self._prepare(f"{path}.out", ops.pack, f"{attention}.o_proj.weight")
        self._prepare(f"{path}.gate_up", ops.pack_gated, f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight")
        self._prepare(f"{path}.down", ops.pack, f"{mlp}.down_proj.weight")
        for old, new in {
            f"{path}.input_layernorm.weight": "input_norm",
            f"{attention}.q_norm.weight": "query_norm",
            f"{attention}.k_norm.weight": "key_norm",
            f"{attention}.o_proj.bias": "out_bias",
            f"{path}.{kind.attention_norm}.weight": "attention_norm",
            f"{path}.{kind.mlp_norm}.weight": "mlp_norm",
            f"{mlp}.down_proj.bias": "down_bias",
            f"{path}.{kind.output_norm}.weight": "output_norm",
        }.items():
            if old in self._plan:
                self._plan[f"{path}.{new}"] = self._plan.pop(old)
        model = self._model
        activation = ACTIVATIONS[self._act]
        return FusedLayer(module, model.heads, model.kv_heads, model.head_dim, activation)

    def _replace_vocabulary(self) -> None:
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

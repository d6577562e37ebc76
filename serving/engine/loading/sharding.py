"""Turns a sharded skeleton into a `ShardedModel`, and writes down what each of its parameters is of the checkpoint.

What a layer's share is, DeepSpeed says (`Share`); here it is only combined with the names and the KV heads' copies.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from serving.engine.distributed.collectives import Collectives
from serving.engine.layers.linear import ShardedLinear
from serving.engine.layers.vocabulary import OutputHead, ShardedEmbedding, VocabSlice
from serving.engine.loading.checkpoint import Checkpoint
from serving.engine.loading.skeleton import Skeleton
from serving.engine.loading.weights import Plan, Share, TensorSlice, runs
from serving.engine.models.adapters import adapt_attention
from serving.engine.models.families import head_dim
from serving.engine.models.sharded_model import ShardedModel
from serving.errors import ModelError


class Assembly:
    """The work on one model. The embedding is split before AutoTP runs, everything else after."""

    def __init__(
        self, skeleton: Skeleton, checkpoint: Checkpoint, collectives: Collectives, dtype: torch.dtype
    ) -> None:
        self.plan: Plan = {}
        self._skeleton = skeleton
        self._base = skeleton.base
        self._checkpoint = checkpoint
        self._collectives = collectives
        self._dtype = dtype
        self._vocab_size = int(self._base.config.vocab_size)
        self._vocab = VocabSlice.of_rank(self._vocab_size, collectives.rank, collectives.world)

    def split_vocabulary(self) -> OutputHead:
        """Put the sharded embedding into the decoder; the head that goes with it."""
        skeleton, family = self._skeleton, self._skeleton.family
        name, width, scale = skeleton.embedding, skeleton.embedding_dim, skeleton.embedding_scale
        rows = ((self._vocab.start, self._vocab.end),)
        weight = self._meta(self._vocab.end - self._vocab.start, width)
        self._base.set_input_embeddings(ShardedEmbedding(weight, self._vocab, self._collectives, scale))
        self.plan[f"base.{name}"] = TensorSlice(skeleton.stored(self._checkpoint, name), rows)
        for kind, shape in skeleton.head_shapes(self._checkpoint).items():
            self.plan[f"head.{kind}"] = TensorSlice(skeleton.stored_head(self._checkpoint, kind, shape), rows)
        bias = self._meta(len(weight)) if family.head_bias else None
        softcap = getattr(self._base.config, "final_logit_softcapping", None)
        return OutputHead(weight, bias, family.logit_multiplier(self._base.config), softcap)

    def finish(self, head: OutputHead, shares: Mapping[str, Share]) -> ShardedModel:
        """Our products in place of all linear layers, attention adapted, the rest as it is; still without weights."""
        for name, module in list(self._base.named_modules()):
            if name in shares or isinstance(module, nn.Linear):
                self._replace(name, module, shares.get(name, Share()))
        for name, _ in self._base.named_parameters():
            if f"base.{name}" not in self.plan:
                self.plan[f"base.{name}"] = TensorSlice(self._skeleton.stored(self._checkpoint, name))
        dim = head_dim(self._base.config)
        heads = self._local_heads(dim)
        kv_heads = heads * self._skeleton.kv_heads // int(self._base.config.num_attention_heads)
        adapt_attention(self._base, heads, kv_heads, dim)
        return ShardedModel(self._base, head, self._vocab, heads=heads, kv_heads=kv_heads, head_dim=dim)

    def _replace(self, name: str, layer: Any, share: Share) -> None:
        in_decoder_layer = re.search(r"\.\d+\.", f".{name}")
        if self._collectives.world > 1 and in_decoder_layer and share.rows is None and share.columns is None:
            raise ModelError(
                f"{self._checkpoint.folder}: DeepSpeed left the layer {name} whole; the model cannot be sharded"
            )
        weight = self._plan_weight(f"{name}.weight", share)
        bias = None
        if layer.bias is not None:
            # A row-parallel layer's bias is added once, whole, after the sum.
            bias = self._plan_weight(f"{name}.bias", Share(rows=share.rows))
        collectives = None if share.columns is None else self._collectives
        self._base.set_submodule(name, ShardedLinear(weight, bias, collectives))

    def _plan_weight(self, name: str, share: Share) -> Tensor:
        stored = self._skeleton.stored(self._checkpoint, name)
        index = self._skeleton.rows.get(name)
        if share.rows is not None:
            index = share.rows if index is None else index[share.rows]
        part = TensorSlice(stored, None if index is None else runs(index), share.columns)
        self.plan[f"base.{name}"] = part
        return self._meta(*part.shape)

    def _local_heads(self, dim: int) -> int:
        """Query heads of this rank: what the attention's output projection takes in."""
        if self._collectives.world == 1:
            return int(self._base.config.num_attention_heads)
        widths = {
            child.weight.shape[1]
            for module in _attention_layers(self._base)
            for child in module.children()
            if isinstance(child, ShardedLinear) and child.collectives is not None
        }
        if len(widths) != 1 or any(width % dim for width in widths):
            raise ModelError(
                f"{self._checkpoint.folder}: DeepSpeed's split of the attention heads is not understood: {widths}"
            )
        return widths.pop() // dim

    def _meta(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self._dtype, device="meta")


def recompute_buffers(base: nn.Module, device: torch.device) -> None:
    """Rotary frequencies are in no checkpoint: take them from a new module of the same kind and configuration."""
    for name, module in list(base.named_modules()):
        if module._buffers:
            fresh: Any = type(module)(module.config)
            base.set_submodule(name, fresh.to(device))


def _attention_layers(base: nn.Module) -> list[Any]:
    return [
        module
        for module in base.modules()
        if hasattr(module, "layer_idx") and type(module).__name__.endswith("Attention")
    ]

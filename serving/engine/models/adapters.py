"""Falcon's and Phi-3's own ways: what in their modules is exchanged or adjusted so that they run on a rank's share."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

from serving.engine.attention.base import Attend, AttentionSpec


class FalconAttention(nn.Module):
    """Falcon's attention, which does not go through Hugging Face's interface and copies keys to all heads.

    All of Falcon's layouts are one: groups of some queries, a key and a value (one group when `multi_query`, groups of
    one query when neither grouped nor multi-query).
    """

    def __init__(self, original: Any, kv_heads: int, head_dim: int) -> None:
        """`original`: the layer it stands for; `kv_heads`: groups on this rank."""
        super().__init__()
        self.query_key_value = original.query_key_value
        self.dense = original.dense
        self.layer_idx = original.layer_idx
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.spec = AttentionSpec(scale=head_dim**-0.5, sliding_window=None, softcap=None)
        self.attend: Attend

    def forward(
        self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> tuple[Tensor, None]:
        """[1, T, hidden] -> [1, T, hidden]."""
        tokens = hidden_states.shape[1]
        groups = self.query_key_value(hidden_states).view(tokens, self.kv_heads, -1, self.head_dim)
        query, key, value = groups[:, :, :-2].flatten(1, 2), groups[:, :, -2], groups[:, :, -1]
        cos, sin = (angle[0] for angle in position_embeddings)
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        mixed = self.attend(self.layer_idx, query, key, value, self.spec)
        return self.dense(mixed.reshape(1, tokens, -1)), None


def adapt_attention(base: Any, heads: int, kv_heads: int, dim: int) -> None:
    """For the two families whose attention code would count with the whole model's heads."""
    if base.config.model_type == "falcon":
        for layer in base.h:
            layer.self_attention = FalconAttention(layer.self_attention, kv_heads, dim)
    if base.config.model_type == "phi3":
        config = copy.copy(base.config)
        config.num_attention_heads, config.num_key_value_heads = heads, kv_heads
        for layer in base.layers:
            layer.self_attn.config = config
            layer.self_attn.num_key_value_heads = kv_heads


def grouped_heads(heads: int, kv_heads: int, replicas: int) -> Tensor:
    """Falcon's [queries of a group, key, value] with each group's queries dealt out to `replicas` smaller groups."""
    queries = heads // kv_heads
    whole = queries * replicas + 2
    groups = []
    for group in range(kv_heads):
        first = group // replicas * whole
        mine = first + group % replicas * queries + torch.arange(queries)
        groups.append(torch.cat([mine, torch.tensor([first + whole - 2, first + whole - 1])]))
    return torch.cat(groups)


def widen_falcon(base: Any, rows: dict[str, Tensor]) -> None:
    """Falcon's configuration cannot say it, so its projections get their further rows here."""
    for name, index in rows.items():
        owner, _, kind = name.rpartition(".")
        layer = base.get_submodule(owner)
        wide = torch.empty(len(index), *getattr(layer, kind).shape[1:], dtype=getattr(layer, kind).dtype, device="meta")
        setattr(layer, kind, nn.Parameter(wide, requires_grad=False))

"""How this engine's attention gets into Hugging Face's module code, which stays as it is.

The name is registered as an attention but not as a mask: the models then make no mask, as a ragged batch wants.
Windows, soft caps and scales reach the function as keywords, and go on to whatever `attach` put on the layer.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

from serving.engine.attention.base import Attend, AttentionSpec

ATTENTION = "gangway"
"""The name in Hugging Face's registry of attentions."""


def attach(model: nn.Module, attend: Attend) -> None:
    """Let every attention layer of `model` call `attend` from now on."""
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            layer: Any = module
            layer.attend = attend


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Hugging Face's signature: [1, heads, T, D] in, [1, T, heads, D] out."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    ragged = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    mixed = module.attend(module.layer_idx, *ragged, AttentionSpec(scale, sliding_window, softcap))
    return mixed.unsqueeze(0), None


AttentionInterface.register(ATTENTION, _attention)


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

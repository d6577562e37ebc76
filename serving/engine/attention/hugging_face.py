"""How this engine's attention gets into Hugging Face's module code, which stays as it is.

The name is registered as an attention but not as a mask: the models then make no mask, as a ragged batch wants.
Windows, soft caps and scales reach the function as keywords, and go on to whatever `attach` put on the layer.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

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

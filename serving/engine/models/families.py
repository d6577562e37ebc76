"""Which models work: an allow-list, as every family on it is compared with Hugging Face's own logits in the tests.

Anything else is refused with an error message: a model that AutoTP splits wrongly would answer, only wrongly.
Mixture-of-experts models are refused as AutoTP leaves their experts whole on each rank.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serving.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is special about a model type, beyond what its Hugging Face code and configuration say."""

    heads: tuple[str, ...] = ("lm_head",)
    """Names of the output head in checkpoints, the usual one first."""

    prefixes: tuple[str, ...] = ()
    """Further prefixes that checkpoints put before the decoder's tensors."""

    refuse: Callable[[Any], str | None] = lambda _: None
    """The variant of this family that is not supported, in words, if `config` is one."""

    kv_heads: Callable[[Any], int] = lambda config: (
        getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    )
    """Heads of keys and values."""

    logit_multiplier: Callable[[Any], float] = lambda _: 1.0
    """Factor of the logits."""

    head_bias: bool = False
    """The output head has a bias."""

    fused_qkv: str | None = None
    """Name of the projection that makes queries, keys and values in one, where there is one."""

    learned_positions: bool = False
    """Positions are looked up in a table, which ends."""

    partial_rotary: bool = False
    """The code can rotate a part of each head and leave the rest (`partial_rotary_factor`)."""


def _when(attribute: str, words: str) -> Callable[[Any], str | None]:
    return lambda config: words if getattr(config, attribute, None) else None


def _falcon_kv_heads(config: Any) -> int:
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


def _phi3_variant(config: Any) -> str | None:
    return (
        None if head_dim(config) * config.num_attention_heads == config.hidden_size else "with a head size of its own"
    )


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma": Family(),
    "gemma2": Family(),
    "gemma3_text": Family(),
    "gemma3": Family(
        heads=("lm_head", "language_model.lm_head"), prefixes=("language_model.model.", "model.language_model.")
    ),
    "opt": Family(learned_positions=True),
    "gpt_neox": Family(heads=("lm_head", "embed_out"), fused_qkv="query_key_value", partial_rotary=True),
    "falcon": Family(
        refuse=_when("alibi", "with alibi positions"), kv_heads=_falcon_kv_heads, fused_qkv="query_key_value"
    ),
    "glm": Family(partial_rotary=True),
    "glm4": Family(partial_rotary=True),
    "granite": Family(logit_multiplier=lambda config: 1.0 / config.logits_scaling),
    "phi3": Family(refuse=_phi3_variant, fused_qkv="qkv_proj", partial_rotary=True),
    "starcoder2": Family(),
    "stablelm": Family(refuse=_when("qk_layernorm", "with a norm of its own for each head"), partial_rotary=True),
    "olmo": Family(),
    "cohere": Family(
        refuse=_when("use_qk_norm", "with norms over queries and keys"),
        logit_multiplier=lambda config: config.logit_scale,
    ),
    "phi": Family(head_bias=True, partial_rotary=True),
    "nemotron": Family(partial_rotary=True),
}


def head_dim(hf: Any) -> int:
    """Elements of one attention head."""
    return int(getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads)


def kv_replicas(hf: Any, family: Family, world: int) -> int:
    """How often each KV head is repeated so that every one of `world` ranks gets one; 1 where there are enough.

    The smallest number that divides the queries of a group and suffices. Raises `ModelError` for more ranks than heads.
    """
    heads, kv_heads = int(hf.num_attention_heads), family.kv_heads(hf)
    if world > heads:
        raise ModelError(
            f"parallel.tensor_parallel_size is {world}, but the model has {heads} attention heads; "
            "use at most as many ranks"
        )
    if heads % kv_heads:
        raise ModelError(f"the model's {heads} attention heads are not a multiple of its {kv_heads} KV heads")
    group = heads // kv_heads
    return next(factor for factor in range(1, group + 1) if group % factor == 0 and kv_heads * factor >= world)

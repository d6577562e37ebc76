"""Which models work: an allow-list, as every family on it is compared with Hugging Face's own logits in the tests.

Anything else is refused with an error message: a model that AutoTP splits wrongly would answer, only wrongly.
Mixture-of-experts models are refused as AutoTP leaves their experts whole on each rank.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from serving.config import ModelConfig
from serving.engine.model_numbers import (
    MAX_POSITIONS,
    check_numbers,
    check_sizes,
    require_finite,
    require_size,
)
from serving.errors import GangwayError, ModelError
from serving.generation_config import end_tokens
from serving.model_files import read_json, shown

FIXED_ROPE = {"default", "linear", "llama3", "yarn", "proportional"}
"""Rotary scalings whose frequencies do not depend on the batch."""


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


def read_config(config: ModelConfig) -> tuple[Any, Family]:
    """The Hugging Face configuration of a model that works, and its family; `ModelError` for any other.

    Code in the model folder is never run: a family that Hugging Face does not know cannot have been compared with it.
    """
    folder = config.path
    file = folder / "config.json"
    raw = read_json(file)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError(f"{file}: has no model_type")
    if model_type not in FAMILIES:
        raise ModelError(
            f"{file}: the model type {shown(model_type)} is not supported; these are: {', '.join(sorted(FAMILIES))}"
        )
    if "quantization_config" in raw:  # before Hugging Face looks for a library that could read it
        raise ModelError(f"{file}: the model is quantised (quantization_config), which is not supported")
    check_numbers(file, raw)
    family = FAMILIES[model_type]
    with hugging_face(folder):
        hf = _parse(folder)
        check_sizes(file, hf)
        require_size(file, "the number of KV heads", family.kv_heads(hf))
        require_size(file, "the width of all heads", head_dim(hf) * hf.num_attention_heads)
        require_finite(file, "the factor of the logits", family.logit_multiplier(hf))
        _refuse_variants(file, hf, family, config.max_model_len)
    return hf, family


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


def eos_token_ids(folder: Path, hf: Any) -> frozenset[int]:
    """Tokens that end an answer: all that the model's files name, else the family's own.

    The gateway adds the tokenizer's, which is not read here.
    """
    named = end_tokens(folder)
    if named:
        return named
    own = getattr(hf, "eos_token_id", None)
    return frozenset() if own is None else frozenset(own if isinstance(own, list) else [own])


@contextmanager
def hugging_face(folder: Path) -> Iterator[None]:
    """Whatever its code raises of a model's configuration, as one sentence: its validators raise their own kinds."""
    try:
        yield
    except GangwayError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise ModelError(f"{folder / 'config.json'}: Hugging Face cannot read it: {shown(said)}") from error


def _parse(folder: Path) -> Any:
    """The text model's configuration, as Hugging Face reads it."""
    hf = AutoConfig.from_pretrained(os.fspath(folder), trust_remote_code=False, local_files_only=True)
    return hf.get_text_config()


def _refuse_variants(file: Path, hf: Any, family: Family, max_model_len: int) -> None:
    if getattr(hf, "quantization_config", None) is not None:
        raise ModelError(f"{file}: the model is quantised (quantization_config), which is not supported")
    if getattr(hf, "use_bidirectional_attention", None):
        raise ModelError(
            f"{file}: the model attends in both directions (use_bidirectional_attention) and cannot generate"
        )
    variant = family.refuse(hf)
    if variant is not None:
        raise ModelError(f"{file}: {hf.model_type} {variant} is not supported")
    if family.learned_positions and max_model_len > hf.max_position_embeddings:
        raise ModelError(
            f"{file}: the model's table of positions ends at {hf.max_position_embeddings}, "
            f"but model.max_model_len is {max_model_len}"
        )
    for rope in _ropes(hf):
        _refuse_part(file, hf, family, rope)
        _refuse_rope(file, hf, rope, max_model_len)


def _ropes(hf: Any) -> list[dict[str, Any]]:
    """Rotary parameters; some models have one set for each kind of layer."""
    parameters = getattr(hf, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or ([parameters] if parameters else [])


def _refuse_part(file: Path, hf: Any, family: Family, rope: dict[str, Any]) -> None:
    """Elsewhere Hugging Face's code expects as many angles as a head is wide, and the kernels no more than that."""
    part = rope.get("partial_rotary_factor")
    if part is None:
        return
    if not 0 < require_finite(file, "partial_rotary_factor", part) <= 1:
        raise ModelError(f"{file}: partial_rotary_factor must be above 0 and at most 1, it is {part}")
    if part != 1 and not family.partial_rotary and rope.get("rope_type") != "proportional":
        raise ModelError(
            f"{file}: {hf.model_type} that rotates a part of each head (partial_rotary_factor {part}) is not supported"
        )


def _refuse_rope(file: Path, hf: Any, rope: dict[str, Any], max_model_len: int) -> None:
    """Frequencies that grow with the longest position of a batch would change an answer with its neighbours."""
    kind = str(rope.get("rope_type", "default"))
    if kind in FIXED_ROPE:
        return
    limit = {
        "dynamic": hf.max_position_embeddings,
        "longrope": rope.get("original_max_position_embeddings") or hf.max_position_embeddings,
    }.get(kind)
    if limit is None:
        raise ModelError(f"{file}: rotary positions of type {shown(kind)} are not supported")
    require_size(file, "original_max_position_embeddings", limit, MAX_POSITIONS)
    if max_model_len > limit:
        raise ModelError(
            f"{file}: {kind} rotary positions change beyond {limit} tokens with whatever else is in the batch; "
            f"set model.max_model_len to at most {limit}, it is {max_model_len}"
        )

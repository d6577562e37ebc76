"""Reads a model's config.json into the Hugging Face configuration of a model that works, or says why it does not."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from serving.config import ModelConfig
from serving.engine.loading.model_numbers import (
    MAX_POSITIONS,
    check_numbers,
    check_sizes,
    require_finite,
    require_size,
)
from serving.engine.models.families import FAMILIES, Family, head_dim
from serving.errors import GangwayError, ModelError
from serving.generation_config import end_tokens
from serving.model_files import read_json, shown

FIXED_ROPE = {"default", "linear", "llama3", "yarn", "proportional"}
"""Rotary scalings whose frequencies do not depend on the batch."""


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

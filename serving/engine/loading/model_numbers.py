"""Refuses numbers in config.json that nothing could be computed with, before anything is built by them.

They become sizes of memory, and arguments of C functions, which keep 64 bits of a whole number and take any float.
"""

import math
from pathlib import Path
from typing import Any

from serving.errors import ModelError
from serving.model_files import shown

MAX_SIZE = 2**24
"""Of one dimension of a weight. The largest vocabularies have 2**18, the widest layers a few times 2**16."""
MAX_LAYERS = 2**10
MAX_POSITIONS = 2**31
MAX_FLOAT = 3.4e38
"""About the largest that a float32 holds."""

NEEDED = {
    "hidden_size": MAX_SIZE,
    "num_attention_heads": MAX_SIZE,
    "num_hidden_layers": MAX_LAYERS,
    "vocab_size": MAX_SIZE,
    "max_position_embeddings": MAX_POSITIONS,
}
"""Sizes that every model has, and the most each may be."""
OPTIONAL = {
    "head_dim": MAX_SIZE,
    "num_key_value_heads": MAX_SIZE,
    "num_kv_heads": MAX_SIZE,
    "intermediate_size": MAX_SIZE,
    "ffn_dim": MAX_SIZE,
    "ffn_hidden_size": MAX_SIZE,
    "word_embed_proj_dim": MAX_SIZE,
    "sliding_window": MAX_POSITIONS,
}


def check_numbers(file: Path, raw: Any) -> None:
    """Raises `ModelError` for any number in the file that is not finite, or too large to compute with."""
    waiting = [("", raw)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(name, item) for item in value]
        elif (isinstance(value, float) and not abs(value) <= MAX_FLOAT) or (
            isinstance(value, int) and abs(value) >= 2**63
        ):
            raise ModelError(f"{file}: {shown(name)} is {shown(value)}, with which nothing can be computed")


def check_sizes(file: Path, hf: Any) -> None:
    """Raises `ModelError` unless all sizes of a parsed configuration are whole numbers that a model could have."""
    for name, most in NEEDED.items():
        require_size(file, name, getattr(hf, name, None), most)
    for name, most in OPTIONAL.items():
        if (value := getattr(hf, name, None)) is not None:
            require_size(file, name, value, most)
    if hf.hidden_size < hf.num_attention_heads:
        raise ModelError(f"{file}: hidden_size {hf.hidden_size} is less than {hf.num_attention_heads} attention heads")
    types = getattr(hf, "layer_types", None)
    if types is not None and len(types) != hf.num_hidden_layers:
        raise ModelError(f"{file}: layer_types has {len(types)} entries for {hf.num_hidden_layers} layers")


def require_size(file: Path, name: str, value: Any, most: int = MAX_SIZE) -> None:
    """Raises `ModelError` unless `value` is a whole number from 1 to `most`."""
    if type(value) is not int or not 1 <= value <= most:
        raise ModelError(f"{file}: {name} must be a whole number from 1 to {most}, it is {shown(value)}")


def require_finite(file: Path, name: str, value: Any) -> float:
    """`value` as a float; `ModelError` unless it is a finite number of 32 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ModelError(f"{file}: {name} must be a number, it is {shown(value)}")
    if abs(value) > MAX_FLOAT:
        raise ModelError(f"{file}: {name} is {shown(value)}, too large to compute with")
    return float(value)

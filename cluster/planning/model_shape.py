"""What a model's `config.json` says about its size: layers, heads, parameters. No weights are read, nothing is run.

Dense decoders only, as nothing else is served. A family whose parameters cannot be counted from its configuration takes
the count from its safetensors files.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.errors import ShapeError
from cluster.planning.safetensors_size import read_json, stored_parameters
from serving.model_files import shown

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

GATED = {
    "cohere",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "granite",
    "llama",
    "mistral",
    "olmo",
    "phi3",
    "qwen2",
    "qwen3",
    "stablelm",
}
"""Model types with three matrices in their feed-forward part; the others that are served have two."""

PLAIN = {"falcon", "gpt_neox", "nemotron", "opt", "phi", "starcoder2"}

LARGEST = 2**31
"""Of any size in a configuration."""

MISCOUNT = 0.2
"""Between files and configuration; beyond it they are not of the same model, or its weights are packed."""

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_BIAS_OF_QKV = {"qwen2"}
_TIED_UNLESS_TOLD = {"cohere", "gemma", "gemma2", "gemma3_text", "opt", "falcon"}
_NORMS_A_LAYER = {"cohere": 1, "gemma2": 4, "gemma3_text": 4, "glm4": 4, "olmo": 0}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Sizes of a dense decoder, in elements."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    """Width of the feed-forward part."""

    ffn_matrices: int
    """3 where it is gated, else 2."""

    vocab: int
    tied: bool
    """The output head is the embedding."""

    small: int
    """Norms and biases: elements that every rank holds whole, as planning counts them."""

    stored: int | None = None
    """Parameters that the files hold, where they were there to be counted."""

    @property
    def attention(self) -> int:
        """Elements of all layers' attention."""
        return self.layers * self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)

    @property
    def feed_forward(self) -> int:
        """Elements of all layers' feed-forward parts."""
        return self.layers * self.ffn_matrices * self.hidden * self.ffn

    @property
    def vocabulary(self) -> int:
        """Elements of the embedding and the output head."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All of them: as stored where that is known, else as the configuration says."""
        return self.stored or self.counted

    @property
    def counted(self) -> int:
        """As the configuration says."""
        return self.attention + self.feed_forward + self.vocabulary + self.small

    def kv_bytes_per_token(self, bytes_each: int) -> int:
        """Keys and values of one token in the whole model."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_each


def read_shape(source: Path) -> ModelShape:
    """The shape of the model in a folder, or of a `config.json`. Raises `ShapeError` with one sentence."""
    file = source / "config.json" if source.is_dir() else source
    config = read_json(file)
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    try:
        shape = shape_of(text or config)
    except ShapeError as error:
        raise ShapeError(f"{file}: {error}") from error
    bytes_each = DTYPE_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 2)
    stored = stored_parameters(file.parent, bytes_each) if config is text else None
    if stored is not None and abs(stored - shape.counted) > MISCOUNT * shape.counted:
        raise ShapeError(f"{file.parent}: its files hold {stored:,} parameters, but {file.name} says {shape.counted:,}")
    return replace(shape, stored=stored)


def shape_of(config: dict[str, Any]) -> ModelShape:
    """The shape that a Hugging Face configuration describes. Raises `ShapeError` for what is not a dense decoder."""
    kind = str(config.get("model_type"))
    experts = next((key for key in _EXPERTS if config.get(key)), None)
    if experts is not None:
        raise ShapeError(f"the model is a mixture of experts ({experts}), which this project does not serve")
    if config.get("quantization_config"):
        raise ShapeError("the model is quantised (quantization_config), which this project does not serve")
    if kind not in GATED | PLAIN:
        raise ShapeError(f"the model type {shown(kind)} is not one that this project serves")
    hidden = _positive(config, "hidden_size")
    heads = _positive(config, "num_attention_heads")
    layers = _positive(config, "num_hidden_layers")
    head_dim = _first(config, "head_dim") or max(1, hidden // heads)
    kv_heads = _kv_heads(config, kind, heads)
    ffn = _first(config, "intermediate_size", "ffn_dim", "ffn_hidden_size") or 4 * hidden
    return ModelShape(
        model_type=kind,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        ffn_matrices=3 if kind in GATED else 2,
        vocab=_positive(config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", kind in _TIED_UNLESS_TOLD)),
        small=_small(config, kind, layers, hidden, (heads + 2 * kv_heads) * head_dim, head_dim, ffn),
    )


def _kv_heads(config: dict[str, Any], kind: str, heads: int) -> int:
    if kind == "falcon" and not config.get("new_decoder_architecture"):
        return 1 if config.get("multi_query", True) else heads
    return _first(config, "num_key_value_heads", "num_kv_heads") or heads


def _small(config: dict[str, Any], kind: str, layers: int, hidden: int, qkv: int, head_dim: int, ffn: int) -> int:
    """Norms and biases. A few in a hundred thousand of a large model, so the rarer ones are left out."""
    norms = (_NORMS_A_LAYER.get(kind, 2) * layers + 1) * hidden
    heads_norms = 2 * head_dim * layers if kind in {"qwen3", "gemma3_text"} else 0
    biases = layers * qkv if kind in _BIAS_OF_QKV or config.get("attention_bias") else 0
    if config.get("attention_bias") and kind == "llama":
        biases += layers * hidden
    if config.get("mlp_bias"):
        biases += layers * (2 * ffn + hidden)
    return norms + heads_norms + biases


def _first(config: dict[str, Any], *keys: str) -> int | None:
    """The first of them that the configuration has."""
    return next((_positive(config, key) for key in keys if config.get(key)), None)


def _positive(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value < LARGEST:
        raise ShapeError(f"{key} must be a positive number, it is {shown(value)}")
    return value

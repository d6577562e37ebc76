"""The decoder of a model without its weights: Hugging Face's modules on the meta device, before sharding.

Where there are more ranks than KV heads, the skeleton has each KV head several times over; `rows` says which row of the
checkpoint each row of such a widened layer repeats. The output head is not part of it.
"""

import copy
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from serving.engine.attention.hugging_face import ATTENTION
from serving.engine.loading.checkpoint import Checkpoint, StoredTensor
from serving.engine.loading.model_config import hugging_face
from serving.engine.models.adapters import grouped_heads, widen_falcon
from serving.engine.models.families import Family, head_dim
from serving.errors import ModelError


class Skeleton:
    """A decoder on meta, and how its parameters are called and laid out in checkpoints."""

    def __init__(self, base: Any, family: Family, kv_heads: int, rows: Mapping[str, Tensor]) -> None:
        """`rows`: parameter name -> int64 row of the checkpoint's tensor, for each row; absent: the same rows."""
        self.base = base
        self.family = family
        self.kv_heads = kv_heads
        self.rows = rows
        self.shapes = {name: self._stored_shape(name, weight) for name, weight in base.named_parameters()}
        embedding = base.get_input_embeddings()
        self.embedding = next(f"{name}.weight" for name, module in base.named_modules() if module is embedding)
        self.embedding_dim = int(embedding.embedding_dim)
        self.embedding_scale = float(getattr(embedding, "scalar_embed_scale", 1.0))

    def stored(self, checkpoint: Checkpoint, name: str) -> StoredTensor:
        """The checkpoint's tensor of one parameter; `ModelError` unless it is there in the right shape."""
        prefixes = (f"{self.base.base_model_prefix}.", "", *self.family.prefixes)
        return checkpoint.get((prefix + name for prefix in prefixes), self.shapes[name])

    def stored_head(self, checkpoint: Checkpoint, kind: str, shape: tuple[int, ...]) -> StoredTensor:
        """The output head's `kind`, "weight" or "bias"."""
        return checkpoint.get((f"{head}.{kind}" for head in self.family.heads), shape)

    def head_shapes(self, checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
        """What the output head has of its own: nothing where it is the embedding.

        A head that is stored although the configuration says tied is taken at its word, as Hugging Face does.
        """
        size = int(self.base.config.vocab_size)
        stored = checkpoint.find(f"{head}.weight" for head in self.family.heads)
        shapes: dict[str, tuple[int, ...]] = {}
        if stored is not None or not self.base.config.tie_word_embeddings:
            shapes["weight"] = (size, self.embedding_dim)
        if self.family.head_bias:
            shapes["bias"] = (size,)
        return shapes

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises `ModelError` for the first tensor that is missing or has another shape than the configuration says."""
        for name in self.shapes:
            self.stored(checkpoint, name)
        for kind, shape in self.head_shapes(checkpoint).items():
            self.stored_head(checkpoint, kind, shape)

    def _stored_shape(self, name: str, weight: Tensor) -> tuple[int, ...]:
        rows = self.rows.get(name)
        return tuple(weight.shape) if rows is None else (int(rows.max()) + 1, *weight.shape[1:])


def build_skeleton(folder: Path, hf: Any, family: Family, replicas: int, dtype: torch.dtype) -> Skeleton:
    """The decoder of `folder`'s configuration `hf`, with every KV head `replicas` times.

    Raises `ModelError` where Hugging Face cannot make it, or makes rotations or scales that cannot be computed with.
    """
    with hugging_face(folder):
        skeleton = _build(hf, family, replicas, dtype)
        _check_rotations(folder, skeleton)
        _check_scales(folder, skeleton.base)
    return skeleton


def _check_rotations(folder: Path, skeleton: Skeleton) -> None:
    """As many angles as the attention's code and the kernels expect, whatever the configuration calls them."""
    config, dim = skeleton.base.config, head_dim(skeleton.base.config)
    original = getattr(skeleton.base, "rotary_emb", None)
    if original is None:
        return
    rotary = type(original)(config)
    by_type = "layer_type" in inspect.signature(rotary.forward).parameters
    for kind in [(name,) for name in dict.fromkeys(config.layer_types)] if by_type else [()]:
        cos, _ = rotary(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.int64), *kind)
        width = int(cos.shape[-1])
        if width > dim or not width or (width < dim and not skeleton.family.partial_rotary) or not cos.isfinite().all():
            raise ModelError(
                f"{folder / 'config.json'}: its rotary positions are for {width} of a head's {dim} elements, "
                f"with which {config.model_type} cannot be computed"
            )


def _check_scales(folder: Path, base: Any) -> None:
    for module in base.modules():
        for name in ("scaling", "softmax_scale", "eps", "variance_epsilon"):
            if (value := getattr(module, name, None)) is not None and not _is_finite(value):
                raise ModelError(f"{folder / 'config.json'}: {name} would be {value}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _build(hf: Any, family: Family, replicas: int, dtype: torch.dtype) -> Skeleton:
    kv_heads = family.kv_heads(hf) * replicas
    hf = copy.deepcopy(hf)
    is_falcon = hf.model_type == "falcon"
    if replicas > 1 and not is_falcon:
        hf.num_key_value_heads = kv_heads
    with torch.device("meta"):
        base = AutoModel.from_config(hf, dtype=dtype, attn_implementation="eager").eval()
    # Set afterwards, as Falcon picks a class by this name while it is built.
    base.config._attn_implementation = ATTENTION
    if is_falcon:
        base.config.num_kv_heads = kv_heads
    rows = {} if replicas == 1 else _widened_rows(base, family, kv_heads, replicas)
    if is_falcon and rows:
        widen_falcon(base, rows)
    return Skeleton(base, family, kv_heads, rows)


def _widened_rows(base: Any, family: Family, kv_heads: int, replicas: int) -> dict[str, Tensor]:
    """For every parameter that holds KV heads: the checkpoint's row of each of its rows."""
    hf = base.config
    dim, heads = head_dim(hf), int(hf.num_attention_heads)
    repeated = torch.arange(kv_heads) // replicas
    if hf.model_type == "falcon":
        rows, names = grouped_heads(heads, kv_heads, replicas), {"query_key_value"}
    elif family.fused_qkv:
        first_key, first_value = heads, heads + kv_heads // replicas
        rows, names = (
            torch.cat([torch.arange(heads), first_key + repeated, first_value + repeated]),
            {family.fused_qkv},
        )
    else:
        rows, names = repeated, {"k_proj", "v_proj"}
    elements = (rows.unsqueeze(1) * dim + torch.arange(dim)).flatten()
    return {name: elements for name, _ in base.named_parameters() if name.split(".")[-2] in names}

"""All decoder layers as one call into the kernels, where Hugging Face's code makes dozens for each.

Only for classes named here, whose code was read: two blocks that are normed before and perhaps after, queries, keys and
values from plain products, perhaps normed, rotated by halves; a gated MLP without bias in gate and up.
"""

import ctypes
from collections.abc import Sequence
from ctypes import addressof, byref, c_int, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from serving.engine.attention.base import AttentionSpec
from serving.engine.distributed.collectives import NativeSum
from serving.engine.kernels import abi, checks, ops
from serving.engine.kernels.abi import Group, Rotation, Weights
from serving.engine.kernels.library import bind
from serving.engine.layers.cpu_packed import RMS_NORMS, empty, eps_of
from serving.engine.layers.linear import ShardedLinear

ACTIVATIONS = {"silu": abi.SILU, "swish": abi.SILU, "gelu_pytorch_tanh": abi.GELU_TANH}


@dataclass(frozen=True, slots=True)
class Kind:
    """Where a class of layers keeps its parts."""

    mlp_norm: str = "post_attention_layernorm"
    attention_norm: str | None = None
    """Over what the attention gives, before it is added."""
    output_norm: str | None = None
    """Over what the MLP gives."""


_GEMMA = Kind("pre_feedforward_layernorm", "post_attention_layernorm", "post_feedforward_layernorm")
KINDS = {
    "LlamaDecoderLayer": Kind(),
    "MistralDecoderLayer": Kind(),
    "Qwen2DecoderLayer": Kind(),
    "Qwen3DecoderLayer": Kind(),
    "GraniteDecoderLayer": Kind(),
    "GemmaDecoderLayer": Kind(),
    "Gemma2DecoderLayer": _GEMMA,
    "Gemma3DecoderLayer": _GEMMA,
}

_compute = bind("gw_layers", c_int, c_void_p, c_int64, *[c_void_p] * 5)
if _compute is not None:
    _compute.restype = c_int64


class Attention(Protocol):
    """What a layer needs of `NativeAttention`."""

    step: abi.Step | None

    def cache(self, layer: int) -> abi.LayerCache: ...


class Room:
    """Memory for what a layer keeps between its products; all layers of a model share it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._memory = torch.empty(0, dtype=dtype)

    def address(self, elements: int) -> int:
        """Of at least so many elements."""
        if self._memory.numel() < elements:
            self._memory = torch.empty(elements, dtype=self._memory.dtype)
        return self._memory.data_ptr()


class FusedLayer(nn.Module):
    """One rank's share of a decoder layer. Its parameters are filled under these names; None: the layer has none."""

    def __init__(self, original: Any, heads: int, kv_heads: int, dim: int, activation: int) -> None:
        """`original`: the layer it stands for, its projections being `ShardedLinear`s; head counts are this rank's."""
        super().__init__()
        kind, attention, mlp = KINDS[type(original).__name__], original.self_attn, original.mlp
        hidden, dtype = attention.q_proj.weight.shape[1], attention.q_proj.weight.dtype
        width, inner = (heads + 2 * kv_heads) * dim, len(mlp.gate_proj.weight)
        self.input_norm = original.input_layernorm.weight
        self.qkv = empty(ops.packed_shape(width, hidden, dtype), dtype)
        self.qkv_bias = None if attention.q_proj.bias is None else empty((width,), dtype)
        self.query_norm = attention.q_norm.weight if hasattr(attention, "q_norm") else None
        self.key_norm = attention.k_norm.weight if hasattr(attention, "k_norm") else None
        self.out = empty(ops.packed_shape(hidden, heads * dim, dtype), dtype)
        self.out_bias = attention.o_proj.bias
        self.attention_norm = getattr(original, kind.attention_norm).weight if kind.attention_norm else None
        self.mlp_norm = getattr(original, kind.mlp_norm).weight
        self.gate_up = empty(ops.packed_shape(2 * inner, hidden, dtype), dtype)
        self.down = empty(ops.packed_shape(hidden, inner, dtype), dtype)
        self.down_bias = mlp.down_proj.bias
        self.output_norm = getattr(original, kind.output_norm).weight if kind.output_norm else None
        spec = _spec(attention)
        _check_projections(attention, mlp, heads, kv_heads, dim)
        checks.require_scoring(spec.scale, spec.sliding_window, spec.softcap)
        self.layer_idx: int = attention.layer_idx
        self.hidden, self.dim = hidden, dim
        self.attend: Attention
        self.own_sum = None if attention.o_proj.collectives is None else attention.o_proj.collectives.own
        self.room_per_row = 2 * hidden + width + heads * dim + inner
        """Elements that it keeps between its products for each token."""
        self._facts = {
            "hidden": hidden, "heads": heads, "kv_heads": kv_heads, "dim": dim, "inner": inner,
            "window": spec.sliding_window or 0, "softcap": spec.softcap or 0.0, "scale": spec.scale,
            "activation": activation, "residual": getattr(original, "residual_multiplier", 1.0),
            "eps": eps_of(original.input_layernorm), "norm_offset": RMS_NORMS[type(original.input_layernorm).__name__],
        }  # fmt: skip
        checks.require_finite(**{name: self._facts[name] for name in ("residual", "eps")})
        self._shapes = {name: tuple(parameter.shape) for name, parameter in self.named_parameters()}
        self._check_norms(hidden, dim)

    def _check_norms(self, hidden: int, dim: int) -> None:
        widths = dict.fromkeys(
            ("input_norm", "attention_norm", "mlp_norm", "output_norm", "out_bias", "down_bias"), hidden
        )
        for name, width in (widths | {"query_norm": dim, "key_norm": dim}).items():
            if name in self._shapes:
                checks.require_equal(**{name: (self._shapes[name], (width,))})

    def laid_out(self, rotation: int) -> Weights:
        """For the kernels, once all parameters are there and do not move any more.

        Raises `ValueError` where what is there is not what the layer was made for.
        """
        cache, facts = self.attend.cache(self.layer_idx), self._facts
        cache.check()
        checks.require_equal(cache=((cache.heads, cache.dim), (facts["kv_heads"], facts["dim"])))
        for name, parameter in self.named_parameters():
            checks.require_whole(name, parameter, self._shapes[name], cache.keys.dtype)
        pointers = {name: parameter.data_ptr() for name, parameter in self.named_parameters()}
        where = {"keys": cache.keys.data_ptr(), "values": cache.values.data_ptr(), "block_size": cache.block_size}
        return Weights(**pointers, **where, **self._facts, rotation=rotation)


class HalfRotary(nn.Module):
    """Cosines and sines as the rotation kernel takes them, once a step: float32 [T, rotary / 2] each."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.latest: dict[str | None, tuple[Tensor, Tensor]] = {}
        """Of this step, by type of layer; None: the model has one type only."""

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> None:
        """`x` tells the device only: angles stay float32, where Hugging Face rounds them to the model's format."""
        kind = () if layer_type is None else (layer_type,)
        cos, sin = self.original(x.new_empty(0, dtype=torch.float32), position_ids, *kind)
        half = cos.shape[-1] // 2
        self.latest[layer_type] = cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


class FusedLayers(nn.ModuleList):
    """The `FusedLayer`s of a model, which Hugging Face's loop over a slice of them takes for a single one."""

    def __init__(self, layers: Sequence[FusedLayer], rotary: HalfRotary, types: Sequence[str] | None) -> None:
        """`types`: the kind of rotation of each layer, where the model has several."""
        super().__init__(layers)
        self._fused = list(layers)
        self._rotary = (rotary,)  # in a tuple, or it would count as a submodule once more
        self._kinds: list[str | None] = [None] if types is None else [*dict.fromkeys(types)]
        self._kind_of = [0] * len(layers) if types is None else [self._kinds.index(kind) for kind in types]
        self._room = Room(layers[0].qkv.dtype)
        self._room_per_row = max(layer.room_per_row for layer in layers)
        self._dim = min(layer.dim for layer in layers)
        checks.require_equal(widths=({layer.hidden for layer in layers}, {layers[0].hidden}))
        self._sum = layers[0].own_sum
        self._group = _group(self._sum)
        self._weights: Any = None

    def __getitem__(self, index: Any) -> Any:
        return (self._run,) if isinstance(index, slice) else super().__getitem__(index)

    def _run(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """[1, T, hidden], changed in place; of the tokens that are not wanted it is not finished. Raises `PeerLost`."""
        step = self._fused[0].attend.step
        assert step is not None, "begin() names the batch first"
        dtype, hidden = self._fused[0].qkv.dtype, self._fused[0].hidden
        checks.require_whole("the input", hidden_states, (1, step.rows, hidden), dtype)
        rotations = self._rotations(step.rows)
        if self._weights is None:
            weights = [layer.laid_out(kind) for layer, kind in zip(self._fused, self._kind_of, strict=True)]
            self._weights = (Weights * len(weights))(*weights)
        failure = _compute(
            int(hidden_states.dtype is torch.bfloat16), self._weights, len(self._weights), byref(step),
            hidden_states.data_ptr(), rotations, self._room.address(step.rows * self._room_per_row),
            byref(self._group),
        )  # fmt: skip
        if failure:
            assert self._sum is not None
            raise self._sum.failure(failure)
        return hidden_states

    def _rotations(self, rows: int) -> Any:
        angles = [self._rotary[0].latest[kind] for kind in self._kinds]
        for cos, sin in angles:
            checks.require_rotation(cos, sin, rows, self._dim)
        rotations = [Rotation(cos.data_ptr(), sin.data_ptr(), 2 * cos.shape[1]) for cos, sin in angles]
        return (Rotation * len(rotations))(*rotations)


def fusable(layer: Any, hidden_act: str) -> bool:
    """Whether `FusedLayer` computes what `layer` computes."""
    if type(layer).__name__ not in KINDS or hidden_act not in ACTIVATIONS:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    products = [
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    ]
    return (
        all(isinstance(p, ShardedLinear) and ops.packable(p.weight) for p in products)
        and mlp.gate_proj.bias is None
        and mlp.up_proj.bias is None
        and len(mlp.gate_proj.weight) % abi.LANES == 0
        and len(attention.o_proj.weight) % abi.LANES == 0
        and (attention.o_proj.collectives is None or attention.o_proj.collectives.own is not None)
    )


def _check_projections(attention: Any, mlp: Any, heads: int, kv_heads: int, dim: int) -> None:
    """Raises `ValueError` unless this rank's weights are of the sizes that the kernels will be told."""
    hidden, inner = attention.q_proj.weight.shape[1], len(mlp.gate_proj.weight)
    checks.require_lanes(hidden=hidden, dim=dim, inner=inner)
    checks.require_heads(heads, kv_heads)
    expected = {
        "q_proj": (heads * dim, hidden), "k_proj": (kv_heads * dim, hidden), "v_proj": (kv_heads * dim, hidden),
        "o_proj": (hidden, heads * dim), "gate_proj": (inner, hidden), "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }  # fmt: skip
    for name, shape in expected.items():
        layer = getattr(attention if hasattr(attention, name) else mlp, name)
        checks.require_equal(**{name: (layer.weight.shape, shape)})
        if layer.bias is not None:
            checks.require_equal(**{f"{name}.bias": (layer.bias.shape, shape[:1])})
    biases = {getattr(attention, f"{name}_proj").bias is None for name in "qkv"}
    if len(biases) != 1:
        raise ValueError("queries, keys and values do not all have a bias, or none")


def _spec(attention: Any) -> AttentionSpec:
    """What the class's forward passes to its attention function."""
    # Mistral's code keeps the window in its configuration, others on each layer, or know none.
    owner = attention.config if type(attention).__name__ == "MistralAttention" else attention
    softcap = attention.attn_logit_softcapping if type(attention).__name__ == "Gemma2Attention" else None
    return AttentionSpec(attention.scaling, getattr(owner, "sliding_window", None), softcap)


def _group(own: NativeSum | None) -> Group:
    """The addresses by which C calls the sum; all null for a group of one."""
    if own is None:
        return Group()
    functions = (None if call is None else ctypes.cast(call, c_void_p) for call in (own.function, own.begin, own.end))
    return Group(*functions, addressof(own.ranks), own.most)

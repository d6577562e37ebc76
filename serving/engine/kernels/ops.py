"""The kernels as functions of tensors. Only called where `available()`.

Shapes and types are checked (`ValueError`) before any pointer is handed on. What a batch says, slots and block tables,
is the scheduler's to get right.
"""

from ctypes import byref, c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from serving.engine.kernels import checks
from serving.engine.kernels.abi import LANES, NONE, PANEL, QUERIES, LayerCache, Step
from serving.engine.kernels.library import bind, kernels


def available() -> bool:
    """Whether this processor can run the kernels."""
    return kernels() is not None


_P, _I, _L, _F = c_void_p, c_int, c_int64, c_float
_pack = bind("gw_pack", _I, _P, _L, _L, _P)
_product = bind("gw_product", _I, _P, _L, _L, _L, _P, _L, _P, _P, _L, _I, _I)
_norm = bind("gw_rms_norm", _I, _P, _P, _P, _L, _L, _F, _F)
_keep = bind("gw_keep", _I, _P, _P, _L, _L, _L, _P, _P, _L, _P, _L)
_attend = bind("gw_attend", _I, _P, _P, _L, _L, _L, _P, _F, _F, _L, _P, _L, _L, _P)


def is_bf16(tensor: Tensor) -> int:
    """The kernels' code of its element type."""
    return int(tensor.dtype is torch.bfloat16)


def packable(weight: Tensor) -> bool:
    """Whether `pack` takes a weight of this shape and format: not empty, an even number of inputs."""
    return weight.dim() == 2 and weight.numel() > 0 and weight.dtype in checks.FORMATS and weight.shape[1] % 2 == 0


def packed_shape(rows: int, inputs: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Panels [ceil(N / 32), K / pair, 32, pair] of an [N, K], where pair is 2 for bfloat16 and 1 for float32."""
    pair = 2 if dtype is torch.bfloat16 else 1
    return -(-rows // PANEL), inputs // pair, PANEL, pair


def pack(weight: Tensor) -> Tensor:
    """[N, K] -> its panels; see `packed_shape`."""
    if not packable(weight):
        raise ValueError(f"a weight of shape {list(weight.shape)} in {weight.dtype} cannot be packed")
    rows, inputs = weight.shape
    packed = torch.empty(packed_shape(rows, inputs, weight.dtype), dtype=weight.dtype)
    contiguous = weight.contiguous()
    _pack(is_bf16(weight), contiguous.data_ptr(), rows, inputs, packed.data_ptr())
    return packed


def pack_gated(gate: Tensor, up: Tensor) -> Tensor:
    """Two [N, K], N a multiple of 16, interleaved by 16 rows, so that one product ends in act(gate) * up."""
    rows, inputs = gate.shape
    both = torch.stack([gate.view(rows // LANES, LANES, inputs), up.view(rows // LANES, LANES, inputs)], dim=1)
    return pack(both.reshape(2 * rows, inputs))


def pack_joined(*weights: Tensor) -> Tensor:
    """Several [N_i, K] below each other, packed as one."""
    return pack(torch.cat(weights))


def unpack_rows(packed: Tensor, rows: Tensor) -> Tensor:
    """Rows of the weight that was packed: int64 [...] -> [..., K]. An embedding lookup in a packed output head."""
    return packed[rows // PANEL, :, rows % PANEL].flatten(-2)


def product(
    x: Tensor, packed: Tensor, outputs: int, bias: Tensor | None, activation: int = NONE, threads: int = 1
) -> Tensor:
    """[M, K] times a packed [outputs, K], transposed, plus bias: [M, outputs], or half of that when gated."""
    checks.require_format(x.dtype)
    checks.require_rows("the input", x, len(x), 1, x.dtype)
    rows, inputs = x.shape
    checks.require_whole("the packed weight", packed, packed_shape(outputs, inputs, x.dtype), x.dtype)
    if bias is not None:
        checks.require_whole("the bias", bias, (outputs,), x.dtype)
    if activation != NONE:
        checks.require_lanes(**{"half of a gated product": outputs // 2})
    width = outputs if activation == NONE else outputs // 2
    y = torch.empty(rows, width, dtype=x.dtype)
    _product(
        is_bf16(x), x.data_ptr(), x.stride(0), rows, inputs, packed.data_ptr(), outputs,
        None if bias is None else bias.data_ptr(), y.data_ptr(), width, activation, threads,
    )  # fmt: skip
    return y


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """X / rms(x) * (weight + offset). Contiguous, [M, H], H a multiple of 16."""
    checks.require_format(x.dtype)
    checks.require_lanes(width=x.shape[-1])
    checks.require_whole("the input", x, tuple(x.shape), x.dtype)
    checks.require_whole("the norm's weight", weight, (x.shape[-1],), x.dtype)
    checks.require_finite(eps=eps, offset=offset)
    y = torch.empty_like(x)
    _norm(is_bf16(x), x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // x.shape[-1], x.shape[-1], eps, offset)
    return y


def keep(cache: LayerCache, step: Step, key: Tensor, value: Tensor) -> None:
    """Write [T, heads * dim] keys and values (rows may be apart) to their slots."""
    cache.check()
    for name, rows in (("key", key), ("value", value)):
        checks.require_rows(name, rows, step.rows, cache.heads * cache.dim, cache.keys.dtype)
    _keep(
        is_bf16(key), cache.keys.data_ptr(), cache.values.data_ptr(), cache.block_size, cache.heads, cache.dim,
        byref(step), key.data_ptr(), key.stride(0), value.data_ptr(), value.stride(0),
    )  # fmt: skip


def attend(
    cache: LayerCache,
    query: Tensor,
    heads: int,
    step: Step,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Every token's causal attention over its sequence's blocks.

    Args:
        cache: holds all keys and values up to each token's own.
        query: [T, >= heads * dim], rows may be apart.
        heads: query heads of this rank.
        step: of the tokens.
        scale: factor of the products of queries and keys.
        window: a token sees itself and the `window - 1` before it; None: all before it.
        softcap: bound of the scores, after scaling; None: they have none.

    Returns:
        [T, heads * dim].
    """
    cache.check()
    checks.require_heads(heads, cache.heads)
    checks.require_rows("query", query, step.rows, heads * cache.dim, cache.keys.dtype)
    checks.require_scoring(scale, window, softcap)
    out = torch.empty(step.rows, heads * cache.dim, dtype=query.dtype)
    _attend(
        is_bf16(query), cache.keys.data_ptr(), cache.values.data_ptr(), cache.block_size, cache.heads, cache.dim,
        byref(step), scale, softcap or 0.0, window or 0, query.data_ptr(), query.stride(0),
        heads, out.data_ptr(),
    )  # fmt: skip
    return out


def scratch_for(longest: int, threads: int) -> Tensor:
    """Room for the scores of sequences up to `longest` tokens: float32 [threads, QUERIES, longest rounded up to 16]."""
    return torch.empty(threads, QUERIES, -(-longest // LANES) * LANES, dtype=torch.float32)

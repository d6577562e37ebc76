"""Every structure and constant that Python shares with C++: laid out here as `csrc` declares them.

A structure only points at tensors. What it is made of is checked (`ValueError`) where it is made.
"""

from ctypes import Structure, c_float, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from serving.engine.kernels import checks

LANES = checks.LANES
"""`kTokens`, and the floats of a vector."""
PANEL = 32
"""`kPanel`: output rows of a packed panel."""
QUERIES = 6
"""`kQueries`: queries that the attention computes together."""

NONE, SILU, GELU_TANH = 0, 1, 2
"""Activations of a gated product."""

_P, _L, _F = c_void_p, c_int64, c_float


class LayerCache(NamedTuple):
    """One layer's keys and values in the kernels' own order of elements."""

    keys: Tensor
    """blocks * block_size * heads * dim elements, flat."""
    values: Tensor
    block_size: int
    """A multiple of 16."""
    heads: int
    """KV heads of this rank."""
    dim: int
    """A multiple of 16."""

    def check(self) -> None:
        """Raises `ValueError` unless these are whole blocks of that many heads."""
        checks.require_format(self.keys.dtype)
        checks.require_lanes(block_size=self.block_size, dim=self.dim)
        checks.require_heads(self.heads, self.heads)
        whole = self.keys.numel() - self.keys.numel() % (self.block_size * self.heads * self.dim)
        for name, tensor in (("keys", self.keys), ("values", self.values)):
            checks.require_whole(name, tensor, (whole,), self.keys.dtype)


class Step(Structure):
    """Where the tokens of a batch belong, and room to score in: `Step` of `csrc/kv_cache.h`."""

    _fields_ = (
        ("rows", _L), ("slots", _P), ("positions", _P), ("tables", _P), ("table_stride", _L), ("table_of", _P),
        ("scores", _P), ("scores_stride", _L), ("threads", _L), ("wanted", _P), ("wanted_rows", _L),
    )  # fmt: skip

    def __init__(
        self,
        slots: Tensor,
        positions: Tensor,
        tables: Tensor,
        table_of: Tensor,
        scores: Tensor,
        wanted: Tensor | None = None,
    ) -> None:
        """Of T tokens.

        Args:
            slots: int64 [T], where each token's key and value are kept.
            positions: int64 [T], of each token in its sequence.
            tables: int32 [sequences, blocks].
            table_of: int32 [T], which table each token uses.
            scores: `ops.scratch_for` the longest sequence; its first dimension is the number of threads.
            wanted: int64 [W], ascending, the tokens whose result of the last layer is looked at; None: all.
        """
        rows = len(slots)
        for name, tensor, dtype in (
            ("slots", slots, torch.int64),
            ("positions", positions, torch.int64),
            ("table_of", table_of, torch.int32),
        ):
            checks.require_whole(name, tensor, (rows,), dtype)
        checks.require_rows("tables", tables, len(tables), 0, torch.int32)
        checks.require_whole("scores", scores, (len(scores), QUERIES, scores.shape[-1]), torch.float32)
        if wanted is not None:
            checks.require_whole("wanted", wanted, (len(wanted),), torch.int64)
        super().__init__(
            len(slots), slots.data_ptr(), positions.data_ptr(), tables.data_ptr(), tables.stride(0),
            table_of.data_ptr(), scores.data_ptr(), scores.shape[-1], scores.shape[0],
            None if wanted is None else wanted.data_ptr(), -1 if wanted is None else len(wanted),
        )  # fmt: skip
        self.tensors = slots, positions, tables, table_of, scores, wanted  # the structure only points at them


class Weights(Structure):
    """`Layer` of `csrc/decoder_layer.h`."""

    _fields_ = (
        *((name, _P) for name in (
            "input_norm", "qkv", "qkv_bias", "query_norm", "key_norm", "out", "out_bias", "attention_norm",
            "mlp_norm", "gate_up", "down", "down_bias", "output_norm", "keys", "values",
        )),
        *((name, _L) for name in (
            "hidden", "heads", "kv_heads", "dim", "inner", "block_size", "window", "activation", "rotation",
        )),
        *((name, _F) for name in ("eps", "norm_offset", "residual", "scale", "softcap")),
    )  # fmt: skip


class Group(Structure):
    """`Group` of `csrc/decoder_layer.h`."""

    _fields_ = (("add", _P), ("begin", _P), ("end", _P), ("ranks", _P), ("most", _L))


class Rotation(Structure):
    """`Rotation` of `csrc/decoder_layer.h`."""

    _fields_ = (("cos", _P), ("sin", _P), ("size", _L))

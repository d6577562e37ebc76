"""The kernels against torch's own operators in float32; a row is bit-identical in every batch."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from serving.engine import native_build
from serving.engine.attention.base import AttentionSpec
from serving.engine.kernels import abi, library, ops
from tests.support.requires import needs_avx512

pytestmark = needs_avx512

DTYPES = [torch.float32, torch.bfloat16]


def close(found: Tensor, truth: Tensor) -> None:
    """bfloat16 keeps 8 bits: sums of a few hundred products are compared to 1 % of the result's scale."""
    tolerance = 1e-5 if found.dtype is torch.float32 else 1e-2
    torch.testing.assert_close(found.float(), truth, atol=tolerance * float(truth.abs().max()), rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 64, 32), (5, 66, 50), (13, 576, 100), (40, 130, 7), (1100, 64, 50)]
)
def test_a_product_equals_the_matrix_product(dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype)
    packed = ops.pack(w)
    close(ops.product(x, packed, outputs, None), x.float() @ w.float().T)
    close(ops.product(x, packed, outputs, bias), x.float() @ w.float().T + bias.float())
    assert torch.equal(ops.unpack_rows(packed, torch.arange(outputs)), w)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [abi.SILU, abi.GELU_TANH])
def test_a_gated_product_equals_its_definition(dtype: torch.dtype, activation: int) -> None:
    torch.manual_seed(1)
    x, gate, up = torch.randn(9, 64).to(dtype), torch.randn(48, 64).to(dtype) / 8, torch.randn(48, 64).to(dtype) / 8
    g, u = x.float() @ gate.float().T, x.float() @ up.float().T
    act = torch.nn.functional.silu(g) if activation == abi.SILU else torch.nn.functional.gelu(g, approximate="tanh")
    close(ops.product(x, ops.pack_gated(gate, up), 96, None, activation), act * u)


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_threads_give_the_bits_of_one(dtype: torch.dtype) -> None:
    x, packed = torch.randn(7, 128).to(dtype), ops.pack(torch.randn(200, 128).to(dtype))
    assert torch.equal(ops.product(x, packed, 200, None, threads=2), ops.product(x, packed, 200, None))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_product_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    x, packed = torch.randn(37, 192).to(dtype), ops.pack(torch.randn(96, 192).to(dtype))
    whole = ops.product(x, packed, 96, None)
    for rows in (1, 2, 11, 12, 13, 25):
        assert torch.equal(ops.product(x[:rows], packed, 96, None), whole[:rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_scales(dtype: torch.dtype, offset: float) -> None:
    torch.manual_seed(3)
    x, weight = torch.randn(5, 96).to(dtype), torch.randn(96).to(dtype)
    wide = x.float()
    truth = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * (weight.float() + offset)
    close(ops.rms_norm(x, weight, 1e-5, offset), truth)


def paged(
    lengths: list[int], kv_heads: int, dim: int, block: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, abi.LayerCache, Tensor]:
    """Random sequences written to a cache whose blocks are dealt out backwards: keys, values, cache, tables."""
    total = sum(-(-n // block) for n in lengths)
    size = total * block * kv_heads * dim
    cache = abi.LayerCache(torch.zeros(size, dtype=dtype), torch.zeros(size, dtype=dtype), block, kv_heads, dim)
    tables = torch.zeros(len(lengths), max(-(-n // block) for n in lengths), dtype=torch.int32)
    free = list(range(total))
    keys, values = (
        torch.randn(sum(lengths), kv_heads, dim).to(dtype),
        torch.randn(sum(lengths), kv_heads, dim).to(dtype),
    )
    slots = []
    for i, n in enumerate(lengths):
        for b in range(-(-n // block)):
            tables[i, b] = free.pop()
        slots += [int(tables[i, p // block]) * block + p % block for p in range(n)]
    nowhere = torch.zeros(len(slots), dtype=torch.int32)
    step = abi.Step(torch.tensor(slots), nowhere.long(), tables, nowhere, ops.scratch_for(0, 1))
    ops.keep(cache, step, keys.flatten(1), values.flatten(1))
    return keys, values, cache, tables


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 64, 80])
@pytest.mark.parametrize("spec", [AttentionSpec(0.3, None, None), AttentionSpec(0.2, 20, 5.0)])
@pytest.mark.parametrize("heads", [3, 9, 15, 24])
def test_attention_over_blocks_equals_attention_written_out(
    dtype: torch.dtype, dim: int, spec: AttentionSpec, heads: int
) -> None:
    torch.manual_seed(4)
    block, kv_heads, lengths = 32, 3, [1, 16, 33, 70]
    keys, values, cache, tables = paged(lengths, kv_heads, dim, block, dtype)
    table_of: list[int] = []
    positions: list[int] = []
    truth = []
    query = torch.randn(sum(lengths), heads, dim).to(dtype)
    first = 0
    for i, n in enumerate(lengths):
        k, v = (t[first : first + n].float().repeat_interleave(heads // kv_heads, 1) for t in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query[first : first + n].float(), k) * spec.scale
        if spec.softcap:
            scores = torch.tanh(scores / spec.softcap) * spec.softcap
        behind = torch.arange(n)[:, None] - torch.arange(n)
        hidden = (behind < 0) | (behind >= (spec.sliding_window or n))
        truth.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v))
        table_of += [i] * n
        positions += range(n)
        first += n

    def run(rows: slice) -> Tensor:
        of, at = torch.tensor(table_of[rows], dtype=torch.int32), torch.tensor(positions[rows])
        step = abi.Step(torch.zeros_like(at), at, tables, of, ops.scratch_for(70, 1))
        return ops.attend(cache, query[rows].flatten(1), heads, step, spec.scale, spec.sliding_window, spec.softcap)

    whole = run(slice(None))
    close(whole, torch.cat(truth).flatten(1))
    for row in range(len(whole)):
        assert torch.equal(run(slice(row, row + 1)), whole[row : row + 1]), "a row does not depend on its batch"


def test_the_library_multiplies_the_way_that_was_chosen() -> None:
    """A dot product takes a subnormal weight for zero; widened, it counts."""
    weight = torch.zeros(32, 64, dtype=torch.bfloat16)
    weight[:, 1] = 2.0**-130
    found = ops.product(torch.full((1, 64), 2.0**10, dtype=torch.bfloat16), ops.pack(weight), 32, None)
    assert set(found.flatten().tolist()) == {2.0**-120 if library.products() == "widen" else 0.0}


@pytest.mark.parametrize(("maker", "way"), [("GenuineIntel", "widen"), ("AuthenticAMD", "dot"), ("", "dot")])
def test_the_way_to_multiply_follows_from_the_maker(maker: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(native_build.SWITCH, raising=False)
    monkeypatch.setattr(library, "processor", lambda field: {"vendor_id": maker}[field])
    assert library.products() == way


def test_the_other_way_to_multiply_holds_to_the_same() -> None:
    other = next(way for way in library.PRODUCTS if way != library.products())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "not other_way"]
    done = subprocess.run(
        command, check=False, env=os.environ | {native_build.SWITCH: other}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout

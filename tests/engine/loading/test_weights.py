"""Slices of a checkpoint are read exactly, in whatever runs, columns and formats."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from serving.engine.loading import weights
from serving.engine.loading.checkpoint import StoredTensor, open_checkpoint
from serving.engine.loading.weights import SliceReader, TensorSlice, runs
from serving.errors import ModelError

ROWS, COLUMNS = 23, 10


def stored(folder: Path, tensor: Tensor) -> StoredTensor:
    save_file({"w": tensor}, folder / "model.safetensors")
    return open_checkpoint(folder).tensors["w"]


@given(st.lists(st.integers(0, 40)))
def test_runs_spell_out_to_the_index_they_came_from(index: list[int]) -> None:
    pieces = runs(torch.tensor(index, dtype=torch.int64))
    assert [row for first, last in pieces for row in range(first, last)] == index
    assert all(first < last for first, last in pieces)


@pytest.mark.parametrize("rows", [None, ((0, ROWS),), ((5, 9), (2, 4), (20, 23)), ((3, 4),), ()])
@pytest.mark.parametrize("columns", [None, (0, COLUMNS), (3, 7), (4, 4)])
@pytest.mark.parametrize("budget", [1, 100, 1 << 20])
def test_a_slice_is_what_indexing_gives(
    rows: tuple[weights.Run, ...] | None,
    columns: weights.Run | None,
    budget: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "MAP_BUDGET_BYTES", budget)
    whole = torch.randn(ROWS, COLUMNS)
    part = TensorSlice(stored(tmp_path, whole), rows, columns)
    index = [row for first, last in rows for row in range(first, last)] if rows is not None else list(range(ROWS))
    expected = whole[index] if columns is None else whole[index][:, columns[0] : columns[1]]
    read = SliceReader().read(part, torch.float32)
    assert part.shape == tuple(read.shape)
    assert torch.equal(read, expected)


@pytest.mark.parametrize("stored_as", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_slice_comes_in_the_format_asked_for(stored_as: torch.dtype, tmp_path: Path) -> None:
    whole = torch.randn(ROWS).to(stored_as)
    read = SliceReader().read(TensorSlice(stored(tmp_path, whole), ((4, 9),)), torch.bfloat16)
    assert torch.equal(read, whole[4:9].to(torch.bfloat16))


def test_a_file_that_goes_away_is_named(tmp_path: Path) -> None:
    part = TensorSlice(stored(tmp_path, torch.ones(3)))
    part.stored.file.unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: the tensor w cannot be read"):
        SliceReader().read(part, torch.float32)

"""Content tells models apart, where names, sizes and times of change do not."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serving.engine.loading.checkpoint import open_checkpoint
from serving.engine.loading.fingerprint import PIECE_BYTES, PIECES, fingerprint, pieces
from serving.errors import ModelError

LONG = 100_000
"""float32 elements, of which a sample is read."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"long": torch.zeros(LONG), "short": torch.zeros(1000)}, folder / "model.safetensors")
    return timeless(folder)


def timeless(folder: Path) -> Path:
    """As an image has it whose times are normalised."""
    for file in folder.iterdir():
        os.utime(file, ns=(0, 0))
    return folder


def of(folder: Path) -> bytes:
    return fingerprint(open_checkpoint(folder))


def changed(model: Path, name: str, place: int) -> Path:
    """A copy with one element changed, of the same names, sizes and times."""
    folder = model.with_name("changed")
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name][place] = 1.0
    save_file(tensors, folder / "model.safetensors")
    return timeless(folder)


@pytest.mark.parametrize(
    ("name", "place"), [("short", 0), ("short", 567), ("short", -1), ("long", 0), ("long", -1), ("long", LONG // 7)]
)
def test_models_of_equal_names_sizes_and_times_differ_by_content(model: Path, name: str, place: int) -> None:
    other = changed(model, name, place)
    for file in model.iterdir():
        stats = [(folder / file.name).stat() for folder in (model, other)]
        assert len({(status.st_size, status.st_mtime_ns) for status in stats}) == 1
    assert of(model) != of(other)


def test_a_copy_at_another_place_is_the_same(model: Path) -> None:
    shutil.copytree(model, model.with_name("copy"))
    assert of(model) == of(model.with_name("copy"))


def test_a_header_that_says_something_else_is_another_model(model: Path) -> None:
    file = model / "model.safetensors"
    before = of(model)
    file.write_bytes(file.read_bytes().replace(b'"short"', b'"shirt"'))
    timeless(model)
    assert of(model) != before


def test_a_configuration_that_says_something_else_is_another_model(model: Path) -> None:
    before = of(model)
    (model / "config.json").write_text(json.dumps({"rope_theta": 1.0}))
    timeless(model)
    assert of(model) != before


def test_what_the_sample_misses_the_time_of_change_tells(model: Path) -> None:
    before = of(model)
    os.utime(model / "model.safetensors", ns=(0, 1))
    assert of(model) != before


def test_the_sample_of_a_tensor_is_bounded_whatever_its_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    sizes = {0, 1, PIECES * PIECE_BYTES - 1, PIECES * PIECE_BYTES, PIECES * PIECE_BYTES + 1, 1_000_000}
    save_file({str(size): torch.zeros(size, dtype=torch.int8) for size in sizes}, tmp_path / "model.safetensors")
    for name, stored in open_checkpoint(tmp_path).tensors.items():
        sample = list(pieces(stored))
        assert sum(size for _, size in sample) == min(int(name), PIECES * PIECE_BYTES)
        assert sample[0][0] == stored.begin
        assert sum(sample[-1]) == stored.end
        assert sample == sorted(sample)


def test_a_file_cut_short_meanwhile_is_told(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    os.truncate(model / "model.safetensors", 5000)
    with pytest.raises(ModelError, match=r"model\.safetensors: was cut short"):
        fingerprint(checkpoint)

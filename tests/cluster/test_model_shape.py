"""Sizes of models from their own files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cluster.errors import ShapeError
from cluster.planning.model_shape import ModelShape, read_shape, shape_of
from tests.cluster.conftest import ROOT

MODELS = ROOT / "tests" / "cluster" / "models"

PUBLISHED = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "qwen2.5-72b": 72_706_203_648,
    "mistral-large-2407": 122_610_069_504,
}

TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 10,
    "tie_word_embeddings": True,
}
TINY_PARAMETERS = 10 * 8 + 2 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16) + 5 * 8


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_published_models_have_their_published_number_of_parameters(name: str, parameters: int) -> None:
    assert read_shape(MODELS / name).parameters == pytest.approx(parameters, rel=0.01)


def test_a_configuration_file_serves_as_well_as_its_folder() -> None:
    folder = MODELS / "llama-3.1-8b"
    assert read_shape(folder / "config.json") == read_shape(folder)


def test_parameters_are_counted_to_the_last_one() -> None:
    assert shape_of(TINY).parameters == TINY_PARAMETERS
    assert shape_of(TINY | {"tie_word_embeddings": False}).parameters == TINY_PARAMETERS + 80
    assert shape_of(TINY | {"model_type": "qwen2"}).parameters == TINY_PARAMETERS + 2 * (8 + 2 * 4)


def test_keys_and_values_of_a_token_are_those_of_the_kv_heads() -> None:
    assert read_shape(MODELS / "llama-3.1-70b").kv_bytes_per_token(2) == 320 * 1024


def folder_with(tmp_path: Path, config: dict[str, Any]) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_stored_tensors_are_counted_without_reading_them(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, TINY)
    save_file({"a": torch.zeros(TINY_PARAMETERS - 10), "s": torch.zeros(())}, folder / "model-1.safetensors")
    save_file({"b": torch.zeros(2, 3)}, folder / "model-2.safetensors")
    assert read_shape(folder).parameters == TINY_PARAMETERS - 10 + 1 + 6


def test_an_index_is_enough_where_the_files_are_elsewhere(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, TINY | {"torch_dtype": "float32"})
    size = {"metadata": {"total_size": 4 * (TINY_PARAMETERS + 3)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(size))
    assert read_shape(folder).parameters == TINY_PARAMETERS + 3


def test_files_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, TINY)
    save_file({"a": torch.zeros(TINY_PARAMETERS // 2)}, folder / "model.safetensors")
    with pytest.raises(ShapeError, match="its files hold"):
        read_shape(folder)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0garbage!", b"\xff" * 16, b"\x04\0\0\0\0\0\0\0null"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    folder = folder_with(tmp_path, TINY)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ShapeError, match=r"model\.safetensors: is not a safetensors file"):
        read_shape(folder)


def test_the_text_half_of_a_larger_configuration_is_read(tmp_path: Path) -> None:
    text = TINY | {"model_type": "gemma3_text", "head_dim": 4}
    shape = read_shape(folder_with(tmp_path, {"model_type": "gemma3", "text_config": text}))
    assert (shape.model_type, shape.head_dim, shape.tied) == ("gemma3_text", 4, True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"model_type": "mamba"}, "model type mamba is not one"),
        ({"quantization_config": {"bits": 4}}, "is quantised"),
        ({"hidden_size": None}, "hidden_size must be a positive number, it is None"),
        ({"vocab_size": "many"}, "vocab_size must be a positive number"),
    ],
)
def test_what_is_not_served_is_refused_in_words(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        read_shape(folder_with(tmp_path, TINY | change))


def test_a_file_that_is_not_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"config\.json: cannot be read as JSON"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ShapeError, match="expected an object, found list"):
        read_shape(tmp_path)


@pytest.mark.parametrize(
    ("config", "kv_heads"),
    [
        ({"model_type": "falcon", "multi_query": True}, 1),
        ({"model_type": "falcon", "multi_query": False}, 4),
        ({"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2}, 2),
        ({"model_type": "opt", "ffn_dim": 32}, 4),
    ],
)
def test_heads_of_keys_and_values_are_found_under_each_familys_name(config: dict[str, Any], kv_heads: int) -> None:
    base = {key: value for key, value in TINY.items() if key != "num_key_value_heads"}
    shape: ModelShape = shape_of(base | config)
    assert (shape.kv_heads, shape.ffn_matrices) == (kv_heads, 2)

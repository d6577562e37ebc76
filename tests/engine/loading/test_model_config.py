"""Which tokens end an answer, as the engine reads it from a model's files."""

import json
from pathlib import Path
from typing import Any

import pytest

from serving.config import ModelConfig
from serving.engine.loading.model_config import eos_token_ids, read_config

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100}


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": [5, 6]}, {"eos_token_id": 7}, {5, 6, 7}),
        ({"eos_token_id": 5}, {}, {5}),
        (None, {"eos_token_id": [7, 8]}, {7, 8}),
        (None, {}, {2}),
    ],
)
def test_all_that_the_files_name_else_the_familys_own(
    tmp_path: Path, generation: Any, config: dict[str, Any], ends: set[int]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    hf, _ = read_config(ModelConfig(path=tmp_path))
    assert eos_token_ids(tmp_path, hf) == ends

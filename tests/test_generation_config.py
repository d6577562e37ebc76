"""What a model's own files say of how to ask it."""

import json
from pathlib import Path
from typing import Any

import pytest

from serving.config import ModelConfig
from serving.errors import ModelError
from serving.generation_config import describe_defaults, end_tokens, sampling_defaults


def model(folder: Path, generation: Any = None, config: Any = None) -> ModelConfig:
    for name, tree in (("generation_config.json", generation), ("config.json", config)):
        if tree is not None:
            (folder / name).write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return ModelConfig(path=folder)


def test_the_keys_that_are_in_the_file_count_whatever_do_sample_says(tmp_path: Path) -> None:
    file = {"do_sample": False, "temperature": 0.6, "top_k": 50, "top_p": None, "max_new_tokens": 9, "max_length": 20}
    assert sampling_defaults(model(tmp_path, file)) == {"temperature": 0.6, "top_k": 50, "max_tokens": 9}


def test_no_file_and_a_setting_give_nothing(tmp_path: Path) -> None:
    assert sampling_defaults(ModelConfig(path=tmp_path)) == {}
    config = model(tmp_path, {"temperature": 0.6})
    assert sampling_defaults(config.model_copy(update={"generation_config": "none"})) == {}


def test_defaults_are_said_as_a_comment(tmp_path: Path) -> None:
    said = describe_defaults(model(tmp_path, {"top_p": 0.9, "repetition_penalty": 1}))
    assert said == "# Where a request sets none, model.generation_config=auto has top_p 0.9, repetition_penalty 1.0\n"
    assert describe_defaults(ModelConfig(path=tmp_path / "none")).endswith("has nothing\n")


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        (None, None, set()),
        ({"eos_token_id": 5}, None, {5}),
        ({"eos_token_id": [5, 6]}, {"eos_token_id": 7}, {5, 6, 7}),
        ({}, {"eos_token_id": [7, 8], "text_config": {"eos_token_id": 9}}, {7, 8, 9}),
        ({"eos_token_id": None}, {"text_config": None}, set()),
    ],
)
def test_all_end_tokens_that_are_named_end_an_answer(
    tmp_path: Path, generation: Any, config: Any, ends: set[int]
) -> None:
    assert end_tokens(model(tmp_path, generation, config).path) == ends


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ({"temperature": "hot"}, "temperature: Input should be a valid number"),
        ({"temperature": -1}, "temperature: Input should be greater than or equal to 0"),
        ('{"temperature": NaN}', "temperature: Input should be a finite number"),
        ('{"temperature": Infinity}', "temperature: Input should be"),
        ({"temperature": True}, "temperature: Input should be a valid number"),
        ({"top_p": 1.5}, "top_p: Input should be less than or equal to 1"),
        ({"top_k": -2}, "top_k: Input should be greater than or equal to -1"),
        ({"top_k": 2**40}, "top_k: Input should be less than 2147483648"),
        ({"top_k": [1]}, "top_k: Input should be a valid integer"),
        ({"min_p": {}}, "min_p: Input should be a valid number"),
        ({"repetition_penalty": 0}, "repetition_penalty: Input should be greater than 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: Input should be greater than or equal to 1"),
        ({"eos_token_id": "</s>"}, "eos_token_id.0: Input should be a valid integer"),
        ({"eos_token_id": [1, -1]}, "eos_token_id.1: Input should be greater than or equal to 0"),
        ({"eos_token_id": True}, "eos_token_id.0: Input should be a valid integer"),
        ({"eos_token_id": [[1]]}, "eos_token_id.0: Input should be a valid integer"),
        ([], "expected a JSON object"),
        ('{"temperature": 1' + "0" * 5000 + "}", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("\x00", "cannot be read as JSON"),
    ],
)
def test_a_value_that_cannot_be_is_a_sentence_for_the_operator(tmp_path: Path, file: Any, told: str) -> None:
    config = model(tmp_path, file)
    with pytest.raises(ModelError) as caught:
        end_tokens(config.path)
    assert str(caught.value).startswith(f"{tmp_path / 'generation_config.json'}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError):
        sampling_defaults(config)


@pytest.mark.parametrize("config", [{"eos_token_id": "x"}, {"text_config": {"eos_token_id": -5}}, {"text_config": 3}])
def test_so_is_one_in_the_models_configuration(tmp_path: Path, config: Any) -> None:
    with pytest.raises(ModelError, match=r"/config\.json: "):
        end_tokens(model(tmp_path, None, config).path)

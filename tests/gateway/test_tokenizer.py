"""The demo model's own tokenizer."""

import shutil
from pathlib import Path

import pytest

from serving.config import ModelConfig
from serving.errors import InvalidRequest, ModelError
from serving.gateway.tokenizer import Tokenizer
from tests.gateway.conftest import MODEL


async def test_a_chat_is_rendered_by_the_models_template(tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode_chat([{"role": "user", "content": "Hi"}], param="messages")
    assert ids[0] == 1
    assert tokenizer.decode(ids).endswith("user\nHi\nassistant\n")


async def test_a_long_text_is_encoded_like_a_short_one(tokenizer: Tokenizer) -> None:
    word = "tree house "
    long = await tokenizer.encode(word * 1000, param="prompt")
    assert tokenizer.decode(long) == word * 1000


async def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="2048 tokens") as caught:
        await tokenizer.encode("a" * (32 * 2048 + 1), param="prompt")
    assert caught.value.param == "prompt"


async def test_a_model_without_a_template_refuses_chats(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Tokenizer(ModelConfig(path=MODEL))
    bare._hf.chat_template = None
    with pytest.raises(InvalidRequest, match="no chat template"):
        await bare.encode_chat([{"role": "user", "content": "Hi"}], param="messages")


async def test_what_a_template_refuses_is_the_callers_error() -> None:
    strict = Tokenizer(ModelConfig(path=MODEL))
    strict._hf.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        await strict.encode_chat([{"role": "user", "content": "Hi"}], param="messages")


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_without_a_tokenizer_is_the_operators_error(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ModelError, match=r"tokenizer|no such folder"):
        Tokenizer(ModelConfig(path=tmp_path / folder))


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("config.json", '{"vocab_size": "many"}', "config.json: the vocab_size is many"),
        ("config.json", '{"vocab_size": -3}', "config.json: the vocab_size is -3"),
        ("config.json", '{"text_config": {"vocab_size": 1e300}}', "config.json: the vocab_size is 1e+300"),
        ("config.json", "[" * 100_000, "no usable tokenizer"),
        ("tokenizer.json", "{}", "no usable tokenizer"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "no usable tokenizer"),
        ("tokenizer_config.json", '{"eos_token": 5}', "no usable tokenizer"),
    ],
)
def test_files_that_are_no_tokenizers_are_a_sentence(tmp_path: Path, file: str, text: str, told: str) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(ModelError) as caught:
        Tokenizer(ModelConfig(path=tmp_path))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_vocabulary_is_the_models(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 49152

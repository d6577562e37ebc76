"""A model folder's files: a model that computes, or one sentence about the file; whatever bytes they are of."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cluster.errors import ShapeError
from cluster.planning.model_shape import read_shape
from serving.config import ModelConfig
from serving.engine.attention.base import AttentionSpec
from serving.engine.distributed.collectives import Alone
from serving.engine.loading.checkpoint import INDEX, SINGLE, open_checkpoint
from serving.engine.loading.fingerprint import fingerprint
from serving.engine.loading.loader import load_model, unwatched
from serving.engine.loading.model_check import check_model
from serving.engine.loading.weights import SliceReader, TensorSlice
from serving.errors import ModelError
from serving.gateway.tokenizer import Tokenizer
from tests.engine.tiny_models import save_model
from tests.fuzz.strategies import fuzz, mutated

DEEP = b'{"a":' + b"[" * 100_000
SIZES = [0, 1, 2, 3, 7, 96, 97, 2**16, 2**24, 2**31, 2**40, 2**63, 2**64, -1, -96]
NUMBERS = st.one_of(st.sampled_from(SIZES), st.integers(), st.floats(), st.sampled_from([1e300, 1e-300, 0.5, 1024.0]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(["linear", "yarn", "\ud800"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
ROPE = ("rope_type", "rope_theta", "factor", "partial_rotary_factor", "original_max_position_embeddings", "beta_fast")
ROPES = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"])},
    optional=dict.fromkeys(ROPE[1:], NUMBERS),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in several files, with a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    save_model("llama", folder, max_shard_size="200KB")
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    fast = Fast(models.BPE(vocab=letters, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="a").save_pretrained(folder)
    return folder


@contextmanager
def put(folder: Path, name: str, data: bytes) -> Iterator[None]:
    """The folder with another file in place of the one of this name, if there is one."""
    file = folder / name
    kept = file.read_bytes() if file.exists() else None
    file.write_bytes(data)
    try:
        yield
    finally:
        if kept is None:
            file.unlink()
        else:
            file.write_bytes(kept)


def attend(_: int, query: torch.Tensor, key: torch.Tensor, __: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """No attention: its sizes only."""
    assert isinstance(spec.scale, float)
    assert query.shape[-1] == key.shape[-1]
    return query


def computes_or_is_refused(folder: Path) -> None:
    config = ModelConfig(path=folder, dtype="float32", max_model_len=32, shard_cache=None)
    try:
        check_model(config, 2)
        model = load_model(config, Alone(), torch.device("cpu"), unwatched)
    except ModelError as error:
        is_a_sentence(error, folder)
        return
    model.attach(attend)
    with torch.inference_mode():
        logits = model.logits(model.hidden_states(torch.tensor([1, 2, 3]), torch.arange(3)))
    assert logits.shape == (3, model.vocab_size)


def is_a_sentence(error: Exception, folder: Path) -> None:
    assert str(error).isprintable()
    assert str(folder) in str(error)
    assert len(str(error)) < 4 * len(str(folder)) + 1000


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@fuzz
@given(st.data())
def test_any_bytes_of_a_configuration_compute_or_are_refused(folder: Path, data: st.DataObject) -> None:
    with put(folder, "config.json", data.draw(mutated([(folder / "config.json").read_bytes()]))):
        computes_or_is_refused(folder)


@fuzz
@given(st.data())
def test_any_values_in_a_configuration_compute_or_are_refused(folder: Path, data: st.DataObject) -> None:
    config = config_of(folder)
    names = [*config, "head_dim", "sliding_window", "layer_types", "quantization_config", "text_config", "pad_token_id"]
    names.remove("model_type")
    changes = data.draw(st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=2))
    with put(folder, "config.json", json.dumps(config | changes).encode()):
        computes_or_is_refused(folder)


@fuzz
@given(rope=ROPES)
def test_any_rotations_compute_or_are_refused(folder: Path, rope: dict[str, Any]) -> None:
    with put(folder, "config.json", json.dumps(config_of(folder) | {"rope_parameters": rope}).encode()):
        computes_or_is_refused(folder)


@fuzz
@given(VALUES)
def test_any_ends_are_tokens_or_refused(folder: Path, ends: object) -> None:
    with put(folder, "generation_config.json", json.dumps({"eos_token_id": ends}).encode()):
        computes_or_is_refused(folder)


def reads_or_is_refused(folder: Path) -> None:
    """Every tensor that the headers name can be read whole, and the folder told from others."""
    try:
        checkpoint = open_checkpoint(folder)
        fingerprint(checkpoint)
        for stored in checkpoint.tensors.values():
            checkpoint.get([stored.name], stored.shape)
            assert SliceReader().read(TensorSlice(stored), torch.float32).shape == stored.shape
    except ModelError as error:
        is_a_sentence(error, folder)


@fuzz
@given(st.data())
def test_any_index_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    with put(folder, INDEX, data.draw(mutated([(folder / INDEX).read_bytes()]))):
        reads_or_is_refused(folder)


def framed(header: bytes, tail: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + tail


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADER = {"a": ENTRY, "b": ENTRY | {"data_offsets": [8, 16]}, "__metadata__": {"k": "v"}}
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(["F32", "BF16", "I8", "F8_E4M3"]), VALUES),
        "shape": st.one_of(st.lists(NUMBERS, max_size=3), VALUES),
        "data_offsets": st.one_of(st.tuples(NUMBERS, NUMBERS), VALUES),
    }
)
HEADERS = st.one_of(
    mutated([json.dumps(HEADER).encode()]),
    st.dictionaries(st.text(max_size=4), ENTRIES, max_size=3).map(lambda header: json.dumps(header).encode()),
)


@fuzz
@given(
    st.one_of(HEADERS, st.dictionaries(st.text(max_size=4), ENTRIES, max_size=3).map(lambda h: json.dumps(h).encode()))
)
@example(DEEP)
@example(b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,1e999]}}')
@example(b'{"a":{"dtype":"F32","shape":[' + b"9" * 4000 + b'],"data_offsets":[0,4]}}')
@example(b'{"a":{"dtype":"X","shape":5,"data_offsets":[0,16]}}')
def test_any_header_is_read_or_refused(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / SINGLE).write_bytes(framed(header, bytes(16)))
    reads_or_is_refused(tmp_path)


@fuzz
@given(st.binary(max_size=40))
@example(b"\xff" * 8)
def test_any_bytes_of_a_file_of_weights_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / SINGLE).write_bytes(data)
    reads_or_is_refused(tmp_path)


SETTINGS = ["tokenizer_class", "eos_token", "chat_template", "added_tokens_decoder", "model_max_length"]
SETTINGS += ["extra_special_tokens", "additional_special_tokens", "auto_map"]


def speaks_or_is_refused(folder: Path) -> None:
    try:
        tokenizer = Tokenizer(ModelConfig(path=folder, max_model_len=32))
    except ModelError as error:
        is_a_sentence(error, folder)
        return
    assert tokenizer.vocab_size > (tokenizer.end_token or 0) >= 0
    assert isinstance(tokenizer.has_chat_template, bool)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "special_tokens_map.json"])
@fuzz
@given(st.data())
def test_any_bytes_of_a_tokenizers_files_speak_or_are_refused(folder: Path, name: str, data: st.DataObject) -> None:
    file = folder / name
    samples = [file.read_bytes() if file.exists() else b'{"eos_token": {"content": "a", "special": true}}']
    with put(folder, name, data.draw(st.one_of(mutated(samples), st.just(DEEP), st.binary(max_size=20)))):
        speaks_or_is_refused(folder)


@fuzz
@given(st.dictionaries(st.sampled_from(SETTINGS), VALUES, max_size=3))
def test_any_values_of_a_tokenizers_settings_speak_or_are_refused(folder: Path, changes: dict[str, object]) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    with put(folder, "tokenizer_config.json", json.dumps(config | changes).encode()):
        speaks_or_is_refused(folder)


@fuzz
@given(st.data())
def test_plan_reads_any_configuration_or_refuses_it(folder: Path, data: st.DataObject) -> None:
    raw = (folder / "config.json").read_bytes()
    changes = st.dictionaries(
        st.sampled_from([*config_of(folder), "head_dim", "text_config", "ffn_dim"]), VALUES, max_size=2
    )
    changed = changes.map(lambda values: json.dumps(config_of(folder) | values).encode())
    with put(folder, "config.json", data.draw(st.one_of(mutated([raw]), changed, st.just(DEEP)))):
        shapes_or_is_refused(folder)


@fuzz
@given(
    st.one_of(HEADERS, st.dictionaries(st.text(max_size=4), ENTRIES, max_size=3).map(lambda h: json.dumps(h).encode()))
)
@example(DEEP)
def test_plan_reads_any_header_or_refuses_it(folder: Path, header: bytes) -> None:
    with put(folder, SINGLE, framed(header, bytes(16))):
        shapes_or_is_refused(folder)


def shapes_or_is_refused(folder: Path) -> None:
    try:
        assert read_shape(folder).parameters > 0
    except ShapeError as error:
        is_a_sentence(error, folder)

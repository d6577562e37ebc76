"""A model's generation_config.json gives the defaults of a request, and nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.batch.in_process import application
from serving.batch.rows import Row, read_row
from serving.config import Config
from serving.messages import Sampling
from tests.api.conftest import serving
from tests.fake_engine import FakeGroup
from tests.gateway.conftest import MODEL, demo_tokenizer, make_config

OWN = {
    "do_sample": False,
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "repetition_penalty": 1.05,
    "max_new_tokens": 5,
    "eos_token_id": [7, 8],
}
CHAT = [{"role": "user", "content": "Hi"}]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": [9, 9]}),
    ("/v1/chat/completions", {"messages": CHAT}),
    ("/predict", {"inputs": "Hi"}),
]
"""Each endpoint, silent about sampling."""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Of the demo model, with a generation_config.json of its own."""
    shutil.copy(MODEL / "config.json", tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(OWN))
    return make_config(f"model.path={tmp_path}")


async def sampled(group: FakeGroup, config: Config, path: str, body: dict[str, Any]) -> Sampling:
    """What the engine is asked for."""
    async with serving(group, config) as (client, _):
        answer = await client.post(path, json=body)
        assert answer.status_code == httpx.codes.OK, answer.text
        assert group.engine is not None
        return group.engine.submitted[-1].sampling


def named(sampling: Sampling) -> list[float]:
    return [sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.repetition_penalty]


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_a_silent_request_is_sampled_as_the_model_wants(
    group: FakeGroup, config: Config, path: str, body: dict[str, Any]
) -> None:
    sampling = await sampled(group, config, path, body)
    assert named(sampling) == [0.6, 0.9, 40, 0.05, 1.05]
    assert sampling.max_tokens == (16 if path == "/v1/completions" else 5)


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_what_a_request_says_wins_and_null_is_silence(
    group: FakeGroup, config: Config, path: str, body: dict[str, Any]
) -> None:
    said = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": None, "repetition_penalty": 1, "max_tokens": 3}
    sampling = await sampled(group, config, path, body | ({"parameters": said} if path == "/predict" else said))
    assert named(sampling) == [0, 1, 0, 0.05, 1]
    assert sampling.max_tokens == 3


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_a_setting_turns_it_off(group: FakeGroup, config: Config, path: str, body: dict[str, Any]) -> None:
    off = config.model_copy(update={"model": config.model.model_copy(update={"generation_config": "none"})})
    sampling = await sampled(group, off, path, body)
    assert named(sampling) == [1, 1, 0, 0, 1]
    assert sampling.max_tokens > 5


async def test_a_batch_is_sampled_alike(group: FakeGroup, config: Config) -> None:
    async with serving(group, config) as (_, service):
        for row in (b'{"inputs": "Hi"}', b'{"custom_id": "1", "url": "/v1/completions", "body": {"prompt": "Hi"}}'):
            call = read_row(Row(0, row, len(row)))
            status, answer = await application(service, config).post(call.path, call.body)
            assert status == httpx.codes.OK, answer
    assert group.engine is not None
    assert [named(submit.sampling) for submit in group.engine.submitted] == [[0.6, 0.9, 40, 0.05, 1.05]] * 2


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_the_tokenizers_own_end_token_ends_an_answer_that_the_files_do_not_name(
    group: FakeGroup, tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    sampling = await sampled(group, make_config(f"model.path={tmp_path}"), path, body)
    assert sampling.stop_token_ids == (demo_tokenizer().end_token,)


async def test_it_ends_none_that_is_to_ignore_ends_and_stands_beside_those_of_the_request(
    group: FakeGroup, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    config = make_config(f"model.path={tmp_path}")
    body = {"prompt": [9], "stop_token_ids": [11]}
    assert (await sampled(group, config, "/v1/completions", body)).stop_token_ids == (11, 2)
    assert (await sampled(group, config, "/v1/completions", body | {"ignore_eos": True})).stop_token_ids == (11,)


async def test_where_the_files_name_it_the_engine_knows_it_already(group: FakeGroup) -> None:
    assert (await sampled(group, make_config(), "/v1/completions", {"prompt": [9]})).stop_token_ids == ()


async def test_status_shows_the_defaults_and_the_end_tokens(group: FakeGroup, config: Config) -> None:
    async with serving(group, config) as (client, _):
        status = (await client.get("/v1/status")).json()
    shown = {name: value for name, value in OWN.items() if name not in {"do_sample", "max_new_tokens", "eos_token_id"}}
    assert status["sampling_defaults"] == shown | {"max_tokens": 5}
    assert status["end_tokens"] == [2, 7, 8]

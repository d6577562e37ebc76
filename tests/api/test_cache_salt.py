"""Prompt isolation, from the field in a request to the blocks that are found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.engine.scheduling.block_manager import BlockManager
from tests.api.conftest import serving
from tests.fake_engine import FakeGroup
from tests.gateway.conftest import make_config

TEXT = "one two three four five six seven eight nine ten eleven twelve"
Body = Callable[[dict[str, str]], dict[str, Any]]
ENDPOINTS: dict[str, Body] = {
    "/predict": lambda salt: {"inputs": [TEXT], "parameters": {"max_tokens": 2, **salt}},
    "/v1/completions": lambda salt: {"prompt": TEXT, "max_tokens": 2, **salt},
    "/v1/chat/completions": lambda salt: {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 2, **salt},
}


@pytest.fixture
def cached(group: FakeGroup) -> FakeGroup:
    """A group whose prompts are found as an engine finds them."""
    group.behaviour.prefix_cache = BlockManager(200, 4, prefix_cache=True)
    return group


async def hits(client: httpx.AsyncClient, path: str, salt: str | None = None, key: str = "") -> int:
    """Tokens of the prompt that came from the prefix cache."""
    body = ENDPOINTS[path]({} if salt is None else {"cache_salt": salt})
    answer = await client.post(path, json=body, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    usage = found["outputs"][0]["usage"] if path == "/predict" else found["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_a_prompt_is_found_under_its_own_salt_only(cached: FakeGroup, path: str) -> None:
    async with serving(cached, make_config()) as (client, _):
        for salt in (None, "a", "b"):
            assert await hits(client, path, salt) == 0
            assert await hits(client, path, salt) > 0


async def test_the_names_of_keys_keep_prompts_apart_whatever_the_salt(cached: FakeGroup, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice:key-1\nalice:key-2\nbob:key-3\nkey-4\nkey-5\n")
    async with serving(cached, make_config(f"security.api_keys_file={tmp_path / 'keys'}")) as (client, _):
        for salt in (None, "shared", "alice", "alice\n"):
            assert await hits(client, "/predict", salt, "key-1") == 0
            assert await hits(client, "/predict", salt, "key-2") > 0
            for other in ("key-3", "key-4", "key-5"):
                assert await hits(client, "/predict", salt, other) == 0


async def test_a_vectors_prompt_is_under_its_salt_too(client: httpx.AsyncClient, group: FakeGroup) -> None:
    answer = await client.post("/v1/embeddings", json={"input": "x", "cache_salt": "a"})
    assert answer.status_code == 200, answer.text
    assert group.engine is not None
    assert group.engine.submitted[-1].cache_salt == "a"


@pytest.mark.parametrize("salt", ["", "x" * 257, 5, ["a"], "\ud800"])
async def test_a_salt_is_a_text_of_bounded_length(client: httpx.AsyncClient, salt: Any) -> None:
    for path, body in ENDPOINTS.items():
        answer = await client.post(path, content=json.dumps(body({"cache_salt": salt})))
        assert answer.status_code == 400, answer.text
        if salt != "\ud800":  # which makes it no JSON at all
            assert answer.json()["error"]["param"] == ("parameters." if path == "/predict" else "") + "cache_salt"

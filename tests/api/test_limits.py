"""What the keys of one name may have: at once, and in a minute."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.api.limits import KeyLimits
from serving.config import SecurityConfig
from serving.errors import OverLimit
from tests.api.conftest import serving
from tests.fake_engine import FakeGroup, until
from tests.gateway.conftest import make_config


class Clock:
    """Goes on when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def limits(clock: Clock, at_once: int = 0, per_minute: int = 0) -> KeyLimits:
    return KeyLimits(
        SecurityConfig(
            api_keys_file=Path("keys"), max_concurrent_per_key=at_once, requests_per_minute_per_key=per_minute
        ),
        clock,
    )


def ask(limits: KeyLimits, name: str = "alice") -> None:
    with limits.counted(name):
        pass


def test_no_minute_holds_more_than_its_number_and_the_wait_is_told() -> None:
    clock = Clock()
    some = limits(clock, per_minute=2)
    ask(some)
    clock.now += 50
    ask(some)
    with pytest.raises(OverLimit) as caught:
        ask(some)
    assert (caught.value.code, caught.value.retry_after_s) == ("key_rate", 10)
    ask(some, "bob")
    clock.now += 10
    ask(some)
    with pytest.raises(OverLimit) as caught:
        ask(some)
    assert caught.value.retry_after_s == 50


def test_a_place_is_free_again_however_its_request_ends() -> None:
    some = limits(Clock(), at_once=1)
    with some.counted("alice"), pytest.raises(OverLimit) as caught:
        ask(some)
    assert caught.value.code == "key_concurrency"
    with pytest.raises(RuntimeError), some.counted("alice"):
        raise RuntimeError
    ask(some)


def test_what_is_refused_does_not_count() -> None:
    some = limits(Clock(), at_once=1, per_minute=2)
    with some.counted("alice"):
        for _ in range(5):
            with pytest.raises(OverLimit):
                ask(some)
    ask(some)


def test_without_limits_nobody_is_refused() -> None:
    some = limits(Clock())
    with some.counted("alice"):
        for _ in range(1000):
            ask(some)


BODY = {"inputs": "x", "parameters": {"max_tokens": 2}}


async def post(client: httpx.AsyncClient, key: str, **more: Any) -> httpx.Response:
    return await client.post("/predict", json=BODY | more, headers={"authorization": f"Bearer {key}"})


@pytest.fixture
def keys(tmp_path: Path) -> str:
    (tmp_path / "keys").write_text("alice:one\nalice:two\nbob:three\n")
    return f"security.api_keys_file={tmp_path / 'keys'}"


async def test_one_request_too_many_at_once_is_answered_429(group: FakeGroup, keys: str) -> None:
    group.behaviour.max_emitted = 1
    async with serving(group, make_config(keys, "security.max_concurrent_per_key=1")) as (client, service):
        for stream in (False, True):
            running = asyncio.create_task(post(client, "one", stream=stream))
            await until(lambda: len(service.journal) == 1)
            refused = await post(client, "two")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "key_concurrency")
            assert (await client.get("/v1/models", headers={"authorization": "Bearer two"})).status_code == 200
            running.cancel()  # the client goes away
            await asyncio.gather(running, return_exceptions=True)
        group.behaviour.max_emitted = 100
        assert [(await post(client, key)).status_code for key in ("one", "two", "three")] == [200] * 3


async def test_one_request_too_many_in_a_minute_is_answered_429(group: FakeGroup, keys: str) -> None:
    async with serving(group, make_config(keys, "security.requests_per_minute_per_key=2")) as (client, _):
        assert (await post(client, "one")).status_code == 200
        assert (await post(client, "two", wrong=1)).status_code == 400
        refused = await post(client, "one")
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "key_rate"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert (await post(client, "three")).status_code == 200
        for _ in range(5):
            assert (await client.get("/v1/status", headers={"authorization": "Bearer one"})).status_code == 200

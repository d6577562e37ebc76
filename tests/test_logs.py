"""What the log says of a request and of a rank, and what it must never say."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.gateway.tokenizer import Tokenizer
from serving.logs import set_up
from serving.messages import Snapshot
from serving.runtime.command.display import make_display
from tests.api.conftest import serving
from tests.fake_engine import FakeGroup, fake_group, until
from tests.gateway.conftest import make_config

PROMPT = "the plum pudding recipe"
KEYS = {"time", "level", "logger", "message", "place", "rank", "request_id"}
KEY, WRONG_KEY = "sk-right-and-secret", "sk-wrong-and-secret"


@pytest.fixture
def group() -> Iterator[FakeGroup]:
    with fake_group() as group:
        yield group


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged once `set_up` was called with it as its stream."""
    ours = logging.getLogger("serving")
    before = ours.handlers[:], ours.level, ours.propagate
    yield io.StringIO()
    ours.handlers[:], ours.propagate = before[0], before[2]
    ours.setLevel(before[1])


async def predict(client: httpx.AsyncClient, key: str = KEY, **fields: object) -> httpx.Response:
    body = {"inputs": PROMPT, "parameters": {"max_tokens": 4, "stop": [PROMPT]}, **fields}
    return await client.post("/predict", json=body, headers={"Authorization": f"Bearer {key}"})


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# who\nalice:{KEY}\n")
    return path


def broken(_self: Tokenizer, text: str, *_: object, **__: object) -> list[int]:
    try:
        raise ValueError(f"cannot encode {text}")
    except ValueError as error:
        raise RuntimeError(f"a defect met {text}") from error


async def ask_in_every_way(group: FakeGroup, keys: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Succeed, be refused in several ways, lose the group on the way, meet a defect; the ids of what was answered."""
    async with serving(group, make_config(f"security.api_keys_file={keys}")) as (client, service):
        answered = [(await predict(client, raw=True)).json()["id"]]
        assert (await predict(client, WRONG_KEY)).status_code == 401
        assert (await predict(client, parameters={"max_tokens": 0})).status_code == 400
        group.behaviour.refuse = f"no room for {PROMPT}"
        assert (await predict(client)).status_code == 400
        group.behaviour.refuse = None
        group.kill()
        await until(lambda: not service.ready)
        group.start()
        answered.append((await predict(client, raw=True)).json()["id"])
        monkeypatch.setattr(Tokenizer, "encode", broken)
        assert (await predict(client, raw=True)).status_code == 500
    return answered


async def test_each_line_is_json_with_its_request_and_neither_prompt_nor_key_is_in_any(
    group: FakeGroup, log: io.StringIO, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up("gateway", as_json=True, stream=log)
    answered = await ask_in_every_way(group, keys, monkeypatch)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert all(set(line) == KEYS for line in lines)
    ends = {line["request_id"]: line["message"] for line in lines if line["logger"] == "serving.gateway.service"}
    assert all(ends[id_].startswith("completed after") for id_ in answered)
    assert [message.split()[0] for message in ends.values()] == ["completed", "InvalidRequest", "completed"]
    (defect,) = [line for line in lines if line["level"] == "ERROR"]
    assert defect["request_id"].startswith("predict-")
    assert "in broken" in defect["message"]
    assert defect["message"].endswith("RuntimeError")
    for secret in ("plum", "pudding", KEY, WRONG_KEY, "and-secret"):
        assert secret not in log.getvalue()


async def test_the_readable_form_has_the_request_and_keeps_the_same_silence(
    group: FakeGroup, log: io.StringIO, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up("gateway", stream=log)
    answered = await ask_in_every_way(group, keys, monkeypatch)
    for id_ in answered:
        assert f"INFO gateway [{id_}] serving.gateway.service: completed after" in log.getvalue()
    for secret in ("plum", "pudding", "and-secret"):
        assert secret not in log.getvalue()


@pytest.mark.parametrize("as_json", [False, True])
def test_a_rank_is_named_in_every_line_and_shows_its_errors_whole(log: io.StringIO, as_json: bool) -> None:
    set_up("rank", rank=3, as_json=as_json, stream=log)
    logger = logging.getLogger("serving.engine.anything")
    logger.info("has loaded")
    try:
        raise ValueError("a shard is broken")
    except ValueError:
        logger.exception("fails")
    text = log.getvalue()
    assert "ValueError: a shard is broken" in text
    if as_json:
        assert [json.loads(line)["rank"] for line in text.splitlines()] == [3, 3]
    else:
        assert "INFO rank 3 serving.engine.anything: has loaded\n" in text
        assert "ERROR rank 3 serving.engine.anything: fails\nTraceback" in text


@pytest.mark.parametrize("as_json", [True, False])
def test_no_line_shows_a_credential_of_an_address(log: io.StringIO, as_json: bool) -> None:
    set_up("gateway", as_json=as_json, stream=log)
    ours = logging.getLogger("serving.somewhere")
    ours.error("cannot send to %s", "https://user:SECRET@host/v1")
    try:
        raise OSError("s3://bucket/in?secret_key=SECRET is away")
    except OSError:
        ours.exception("failed")
    assert "https://***@host/v1" in log.getvalue()
    assert "SECRET" not in log.getvalue()


def test_the_command_says_in_json_what_it_would_have_shown(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", log)
    with make_display(verbose=False, as_json=True) as display:
        display.show(Snapshot(version=1, generation=1, state="loading"))
        display.say("ready at http://127.0.0.1:8000")
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["message"] for line in lines] == ["group is loading", "ready at http://127.0.0.1:8000"]

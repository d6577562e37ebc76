"""A service over a fake group."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path

import pytest

from serving.config import Config, ModelConfig, load_config
from serving.gateway.service import Service
from serving.gateway.tokenizer import Tokenizer
from tests.fake_engine import FakeGroup, fake_group, until
from tests.gateway.tiny_tokenizers import KINDS, write_tokenizer

MODEL = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct"


@cache
def tiny_tokenizer(kind: str) -> Tokenizer:
    """One of `tiny_tokenizers.KINDS`, trained once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder) / kind, kind)
        return Tokenizer(ModelConfig(path=Path(folder) / kind))


@cache
def demo_tokenizer() -> Tokenizer:
    """Loaded once for all tests."""
    return Tokenizer(make_config().model)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return demo_tokenizer()


@pytest.fixture(params=KINDS)
def tiny(request: pytest.FixtureRequest) -> Tokenizer:
    """A tiny tokenizer of each kind."""
    return tiny_tokenizer(request.param)


@pytest.fixture
def group() -> Iterator[FakeGroup]:
    with fake_group() as group:
        yield group


@pytest.fixture
async def service(tokenizer: Tokenizer, group: FakeGroup) -> AsyncIterator[Service]:
    """Ready."""
    service = Service(make_config(), tokenizer, group)
    group.start()
    await service.start()
    await until(lambda: service.ready)
    yield service
    await service.stop()


def make_config(*overrides: str) -> Config:
    quick = ("fault.peer_timeout_s=1", "engine.max_running=4", "http.max_waiting=4", "fault.drain_timeout_s=5")
    return load_config({"model": {"path": str(MODEL), "served_name": "demo"}}, (*quick, *overrides))

"""Bearer keys."""

import logging
import os
from pathlib import Path

import pytest

from serving.api.auth import KeyFile
from serving.errors import ConfigError
from tests.api.conftest import serving
from tests.fake_engine import FakeGroup
from tests.gateway.conftest import make_config


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("# who may ask\nalice:sesame\n\nplain-key\n")
    return file


def rewrite(file: Path, text: str) -> None:
    """Change it in a way that a coarse clock cannot hide."""
    before = file.stat().st_mtime_ns
    file.write_text(text)
    os.utime(file, ns=(before + 10**9, before + 10**9))


async def test_every_path_but_the_probes_and_the_consoles_files_needs_a_key(group: FakeGroup, keys: Path) -> None:
    async with serving(group, make_config(f"security.api_keys_file={keys}")) as (client, _):
        for path in ("/healthz", "/readyz", "/", "/console/main.js"):  # files that are the same for everybody
            assert (await client.get(path)).status_code == 200
        for path in ("/v1/models", "/v1/status", "/metrics", "/openapi.json", "/console/nope", "/nope"):
            response = await client.get(path)
            assert response.status_code == 401
            assert response.json()["error"]["type"] == "authentication_error"
            assert response.headers["www-authenticate"] == "Bearer"
        for key in ("sesame", "plain-key"):
            assert (await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code == 200
        for header in ("Bearer wrong", "Bearer", "Bearer alice:sesame", "Basic sesame", "sesame", "Bearer s\u00e9same"):
            response = await client.get("/v1/models", headers=[(b"authorization", header.encode())])
            assert response.status_code == 401


def test_a_changed_file_counts_at_once(keys: Path) -> None:
    file = KeyFile(keys)
    rewrite(keys, "new-key\n")
    assert file.owner("new-key") is not None
    assert file.owner("sesame") is None


def test_the_last_keys_stay_while_the_file_is_gone(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = KeyFile(keys)
    keys.unlink()
    with caplog.at_level(logging.ERROR):
        assert file.owner("sesame") == "alice"
    assert "cannot be read" in caplog.text
    assert "sesame" not in caplog.text


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="api_keys_file"):
        KeyFile(tmp_path / "nowhere")


def test_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n")
    assert KeyFile(tmp_path / "keys").owner("") is None


def test_keys_of_one_name_are_one_callers_and_a_key_without_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice:old\nalice: new \nbob:other\nplain-1\n:plain-2\n")
    file = KeyFile(tmp_path / "keys")
    assert (file.owner("old"), file.owner("new"), file.owner("other")) == ("alice", "alice", "bob")
    unnamed = {file.owner("plain-1"), file.owner("plain-2")}
    assert len(unnamed - {"alice", "bob", None}) == 2
    assert not any("plain" in str(name) for name in unnamed)

"""Where caches go, whatever the user has for a home: never into the working directory."""

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving import homes
from serving.errors import OperatorError
from serving.homes import settle
from serving.own_folder import own_folder
from tests.second_user import as_nobody, common_folder, needs_root


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user's own folder, for a test."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setattr(homes, "own_folder", lambda: folder)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system knows no user of this id."""

    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)


def settled(**environment: str) -> dict[str, str]:
    """The environment afterwards; torch's folder lies where caches go."""
    settle(environment)
    caches = environment.get("XDG_CACHE_HOME", f"{environment['HOME']}/.cache")
    assert environment.pop(homes.INDUCTOR) == f"{caches}/torchinductor"
    return environment


def test_a_home_that_can_be_written_stays(home: Path) -> None:
    assert settled(HOME=str(home)) == {"HOME": str(home)}


def test_a_folder_for_caches_that_is_named_stays(home: Path, tmp_path: Path) -> None:
    caches = str(tmp_path / "caches" / "mine")
    assert settled(HOME=str(home), XDG_CACHE_HOME=caches)["XDG_CACHE_HOME"] == caches


@pytest.mark.parametrize("named", ["", "caches", "./caches", "~/caches"])
def test_a_folder_for_caches_that_is_not_named_whole_does_not_count(home: Path, named: str) -> None:
    """As the XDG base directory specification says: it would be one of the working directory's."""
    assert settled(HOME=str(home), XDG_CACHE_HOME=named) == {"HOME": str(home)}


@pytest.mark.parametrize("variable", homes.EMPTY_IS_HERE)
def test_an_empty_variable_is_none(home: Path, variable: str) -> None:
    assert settled(HOME=str(home), **{variable: ""}) == {"HOME": str(home)}


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("environment", [{}, {"HOME": ""}, {"HOME": "here"}, {"HOME": "/nonexistent"}, {"HOME": "~"}])
def test_without_a_home_there_is_one_in_the_own_folder(own: Path, environment: dict[str, str]) -> None:
    assert settled(**environment) == {"HOME": str(own / "home")}
    assert (own / "home").is_dir()


def test_without_a_name_the_systems_is_taken(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_dir=str(home)))
    assert settled() == {"HOME": str(home)}


@pytest.mark.usefixtures("nobody")
def test_where_the_own_folder_cannot_be_had_it_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def planted() -> None:
        raise PermissionError("/tmp/gangway-1 is a link: remove it")

    monkeypatch.setattr(homes, "own_folder", planted)
    with pytest.raises(OperatorError, match="no home that can be written, and in its place: /tmp/gangway-1 is a link"):
        settle({})


@needs_root
def test_a_home_that_cannot_be_written_is_not_used_and_its_token_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with common_folder() as folder:
        home = folder / "home"
        (home / ".ray").mkdir(parents=True)
        (home / ".ray" / "auth_token").write_text("token")

        def moved() -> bool:
            fresh = folder / "own"
            fresh.mkdir()
            monkeypatch.setattr(homes, "own_folder", lambda: fresh)
            token = str(home / ".ray" / "auth_token")
            return settled(HOME=str(home)) == {"HOME": str(fresh / "home"), "RAY_AUTH_TOKEN_PATH": token}

        assert as_nobody(moved)


@needs_root
def test_where_only_the_caches_cannot_be_written_they_alone_go_elsewhere() -> None:
    with common_folder() as home:
        (home / ".cache").mkdir()  # as a command with sudo leaves it

        def moved() -> bool:
            return settled(HOME=str(home)) == {"HOME": str(home), "XDG_CACHE_HOME": str(own_folder() / "cache")}

        assert as_nobody(moved)


def test_what_is_named_below_the_usual_folder_follows_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert homes.in_caches(Path("~/.cache/gangway/shards")) == tmp_path / "gangway" / "shards"
    assert homes.in_caches(Path("~/shards")) == home / "shards"
    assert homes.in_caches(Path("/shards")) == Path("/shards")


@pytest.fixture
def working_directory(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "here"
    folder.mkdir()
    yield folder
    assert not list(folder.iterdir())


CODE = """
import sys
from serving.engine.distributed.library import sums
from serving.homes import cache_folder, code_folder
library = sums()
print(library._name if library else None, cache_folder(), code_folder())
"""


@pytest.mark.parametrize("environment", [{"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "."}, {"HOME": ""}, {"HOME": "."}])
def test_native_code_is_never_built_in_the_working_directory_nor_loaded_from_there(
    working_directory: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    all_ = os.environ | {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)} | environment
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=all_, cwd=working_directory
    )
    library, *folders = done.stdout.split()
    assert [Path(path).is_absolute() for path in (library, *folders)] == [True] * 3
    assert not Path(library).is_relative_to(working_directory)


@needs_root
def test_code_is_not_kept_where_others_can_put_theirs(monkeypatch: pytest.MonkeyPatch, own: Path) -> None:
    with common_folder() as folder:
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))

        def plant() -> bool:
            (folder / "gangway" / "native").mkdir(parents=True)
            return True

        assert as_nobody(plant)
        assert homes.cache_folder() == folder
        assert homes.code_folder() == own / "native"

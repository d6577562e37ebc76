"""A folder of foreseen name in the temporary folder: only this user's own is used, whatever others have put there."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.own_folder import own_folder
from tests.second_user import NOBODY, as_nobody, common_folder, needs_root


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where it will be; others can make files beside it."""
    with common_folder() as common:
        yield common / f"gangway-{os.getuid()}"


def test_it_is_made_and_only_this_user_can_enter_it(folder: Path) -> None:
    assert own_folder(str(folder.parent)) == own_folder(str(folder.parent)) == folder
    found = folder.lstat()
    assert (found.st_uid, found.st_mode & 0o777) == (os.getuid(), 0o700)


def test_it_is_in_the_temporary_folder_and_of_the_users_name(tmp_path: Path) -> None:
    code = "from serving.own_folder import own_folder; print(own_folder())"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str(tmp_path / f"gangway-{os.getuid()}")


def test_a_link_is_refused_even_to_a_folder_of_this_users(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    folder.symlink_to(mine)
    with pytest.raises(PermissionError, match=r"gangway-\d+ is a link: remove it, or name another folder in TMPDIR"):
        own_folder(str(folder.parent))
    assert not list(mine.iterdir())


def test_one_that_others_can_enter_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="can be entered by others"):
        own_folder(str(folder.parent))


def test_a_file_is_refused(folder: Path) -> None:
    folder.touch()
    with pytest.raises(PermissionError, match="is no folder"):
        own_folder(str(folder.parent))


@needs_root
def test_another_users_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(PermissionError, match="belongs to another user, 65534"):
        own_folder(str(folder.parent))


@needs_root
def test_two_users_have_a_folder_each(folder: Path) -> None:
    own_folder(str(folder.parent))

    def apart() -> bool:
        return own_folder(str(folder.parent)).lstat().st_uid == NOBODY and not os.access(folder, os.X_OK)

    assert as_nobody(apart)


@needs_root
def test_what_the_second_user_has_planted_is_neither_used_nor_removed(folder: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()

    def plant() -> bool:
        folder.symlink_to(precious)
        return True

    assert as_nobody(plant)
    with pytest.raises(PermissionError, match="is a link"):
        own_folder(str(folder.parent))
    assert precious.is_dir()

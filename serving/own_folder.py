"""A folder of this user's in the temporary folder, for what must be found again by name.

Anyone can make a folder or a link of a name that is foreseen there. So it is used only if it is one that nobody else
can enter; then whatever lies in it is this user's too, and no link in it was planted. The standard library only:
`runtime.forkserver.shim` runs without any other.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def own_folder(parent: str | None = None) -> Path:
    """The folder, made if there is none; `parent`: in place of the temporary folder.

    Raises `PermissionError`, a sentence, when what has the name is a link, somebody else's, or open to others; and what
    making it raises.
    """
    folder = Path(parent or tempfile.gettempdir()) / f"gangway-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if (fault := _fault(folder.lstat())) is not None:
        raise PermissionError(f"{folder} {fault}: remove it, or name another folder in TMPDIR")
    return folder


def parent_for_sockets(room: int) -> str:
    """The temporary folder; /tmp where the name of that has more than `room` bytes, as a socket's path is bounded."""
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) <= room else "/tmp"  # noqa: S108  what is made there is looked at


def _fault(found: os.stat_result) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return "is a link"
    if not stat.S_ISDIR(found.st_mode):
        return "is no folder"
    if found.st_uid != os.getuid():
        return f"belongs to another user, {found.st_uid}"
    return "can be entered by others" if found.st_mode & 0o077 else None

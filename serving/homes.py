"""Where caches go; the one place that says so.

They go to XDG_CACHE_HOME, or to ~/.cache. A user may have neither: in a container with any user id there may be no HOME
and no entry for the user, or a home that cannot be written. The libraries underneath then raise, or take "~" or nothing
at all for a folder of the working directory, and load from there what anybody may have put there. So before they are
imported the environment is settled: in place of what cannot be used comes this user's own temporary folder.
"""

import os
import pwd
import stat
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

from serving.errors import OperatorError
from serving.own_folder import own_folder

INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"
"""Without it torch makes a folder of foreseen name in the temporary folder, and would run what lies there."""
EMPTY_IS_HERE = (
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "TORCH_HOME",
    "TORCH_EXTENSIONS_DIR",
    "TRITON_CACHE_DIR",
    INDUCTOR,
)
"""Variables that name a folder of a library's. An empty one would be the working directory."""
TOKENS = frozenset({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"})


def settle(environment: MutableMapping[str, str] = os.environ) -> None:
    """See that HOME and the folder for caches are there and can be written, in this process and those it starts.

    A token for Ray in a home that cannot be written stays in use. Raises `OperatorError`.
    """
    for variable in EMPTY_IS_HERE:
        if not environment.get(variable, "-"):
            del environment[variable]
    try:
        _settle_home(environment)
        if (folder := _cache_folder(environment)) != _default(environment):
            environment["XDG_CACHE_HOME"] = str(folder)
        else:
            environment.pop("XDG_CACHE_HOME", None)
        environment.setdefault(INDUCTOR, str(folder / "torchinductor"))
    except OSError as error:
        raise OperatorError(f"there is no home that can be written, and in its place: {error}") from error


def cache_folder() -> Path:
    """Where this process may keep what it can make again; it need not exist. Needs no environment that is settled.

    Raises `OSError` if there is no such place.
    """
    return _cache_folder(os.environ)


def in_caches(folder: Path) -> Path:
    """The folder with its `~` written out; one below ~/.cache goes where caches go. Raises `OSError`."""
    if folder.parts[:2] == ("~", ".cache"):
        return cache_folder().joinpath(*folder.parts[2:])
    return folder.expanduser()


def code_folder() -> Path:
    """Where this process may keep code that it builds, made if need be: none in which others could have put theirs.

    Raises `OSError`.
    """
    caches = cache_folder()
    folder = caches / "gangway" / "native"
    folder.mkdir(parents=True, exist_ok=True)
    if not all(map(_is_ours, (caches, folder.parent, folder))):
        folder = own_folder() / "native"
        folder.mkdir(exist_ok=True)
    return folder


def _is_ours(folder: Path) -> bool:
    """Whether only this user and root, and the group if it was let, can change what is in it."""
    found = folder.stat()
    return found.st_uid in {0, os.getuid()} and not found.st_mode & stat.S_IWOTH


def _cache_folder(environment: MutableMapping[str, str]) -> Path:
    named = Path(environment.get("XDG_CACHE_HOME", ""))
    home = _home(environment)
    for folder in (named, home / ".cache" if home else None):
        if folder is not None and folder.is_absolute() and _can_write(folder):
            return folder
    return own_folder() / "cache"


def _default(environment: MutableMapping[str, str]) -> Path:
    return Path(environment["HOME"]) / ".cache"


def _settle_home(environment: MutableMapping[str, str]) -> None:
    home = _home(environment)
    if home is not None and _can_write(home) and home.is_dir():
        environment["HOME"] = str(home)
        return
    if home is not None and not TOKENS & environment.keys():
        token = home / ".ray" / "auth_token"
        if os.access(token, os.R_OK):
            environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    fresh = own_folder() / "home"
    fresh.mkdir(mode=0o700, exist_ok=True)
    environment["HOME"] = str(fresh)


def _home(environment: MutableMapping[str, str]) -> Path | None:
    """The one that is named, else the one that the system knows; None if there is neither."""
    named = environment.get("HOME")
    if not named:
        with suppress(KeyError):
            named = pwd.getpwuid(os.getuid()).pw_dir
    home = Path(named or "")
    return home if home.is_absolute() else None


def _can_write(folder: Path) -> bool:
    """Whether this user can make files in it, or can make it."""
    while not os.path.lexists(folder):
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK) and folder.is_dir()

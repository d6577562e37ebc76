"""A second user of this machine: needs root to become one, and says so where it is not."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="becoming a second user takes root")


def as_nobody(work: Callable[[], bool]) -> bool:
    """What `work` returns in a process of the second user, without this one's groups; False too when it raises."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os._exit(0 if work() else 1)
        except BaseException as error:  # a fork of the tests must not go on as them
            os.write(2, f"{error!r}\n".encode())
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@contextmanager
def common_folder() -> Iterator[Path]:
    """One that every user can write in, as in /tmp itself; pytest's own are this user's only."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o1777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)

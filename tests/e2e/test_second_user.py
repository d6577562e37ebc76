"""A server of a second user of this machine without a home, a name, or a place for caches, as in many containers."""

import os
import shutil
import signal

import httpx
import pytest

from serving.own_folder import own_folder
from tests.e2e.server import CONFIG, MODEL, Process, free_port, gangway
from tests.second_user import common_folder, needs_root

USER = 12345
"""The system knows none of that id. It may read everything, as Python itself may lie where only this user can."""


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="becoming a second user takes setpriv")
def test_a_second_user_without_home_or_name_serves_and_leaves_nothing_in_the_working_directory() -> None:
    port = free_port()
    settings = [f"http.port={port}", f"model.path={MODEL}"]
    command = gangway("serve", CONFIG, *(part for setting in settings for part in ("--set", setting)))
    become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    become += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    with common_folder() as common, common_folder() as here:
        own_folder(str(common))
        (common / "gangway-runs").mkdir(mode=0o755)  # as the first user of an older version has left it
        server = Process(
            "env", "--unset=HOME", f"--chdir={here}", *become, *command, TMPDIR=str(common), XDG_CACHE_HOME=""
        )
        try:
            server.wait_for_line("ready at")
            body = {"inputs": "The capital of France is", "raw": True, "parameters": {"temperature": 0}}
            answer = httpx.post(f"http://127.0.0.1:{port}/predict", json=body, timeout=120)
            assert "Paris" in answer.json()["outputs"][0]["text"]
            found = (common / f"gangway-{USER}").lstat()
            assert (found.st_uid, found.st_mode & 0o777) == (USER, 0o700)
            assert all(process.uids().real == USER for process in server.processes())
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
            server.wait_until_gone()
            assert not list(here.iterdir())
            assert {path.name for path in common.iterdir()} == {
                f"gangway-{os.getuid()}",
                f"gangway-{USER}",
                "gangway-runs",
            }
        finally:
            server.kill()

"""Daemons that are children of a script: it goes on for as long as those it needs do."""

import os
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, subprocess, sys, threading
from ray._private import services
from serving.runtime.ray_cluster import daemons
daemons.PATIENCE_S = float(sys.argv[1])
with daemons.apart():
    child = services.ConsolePopen(["sleep", "1000"])
print(child.pid, os.getsid(child.pid) != os.getsid(0), os.getpgid(child.pid) != os.getpgid(0), flush=True)
with daemons.Watch({child.pid: "raylet"}) as watch:
    word = sys.stdin.readline().strip()
    if word == "orderly":
        watch.release()
    child.kill()
    child.wait()
    if word == "waits":
        threading.Event().wait()
print("went on", services.ConsolePopen.__module__, flush=True)
"""


def run(word: str, patience: float) -> tuple[int, str, str]:
    """Exit code and what was said when the daemon ended; it was in a session and a group of its own."""
    command = [sys.executable, "-c", SCRIPT, str(patience)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as script:
        assert script.stdout is not None
        pid, *apart = script.stdout.readline().split()
        try:
            said, complained = script.communicate(f"{word}\n")
        finally:
            if script.poll() is None:
                os.kill(int(pid), signal.SIGKILL)
    assert apart == ["True", "True"]
    return script.returncode, said, complained


def test_a_command_that_waits_for_a_cluster_that_has_ended_is_ended_with_a_sentence() -> None:
    code, said, complained = run("waits", 0.0)
    assert (code, said) == (1, "")
    assert "gangway: Ray's raylet has ended" in complained


@pytest.mark.parametrize(("word", "patience"), [("orderly", 0.0), ("ends", 1000.0)])
def test_a_command_that_ends_them_or_ends_by_itself_is_left_alone(word: str, patience: float) -> None:
    code, said, complained = run(word, patience)
    assert (code, complained) == (0, "")
    assert said.startswith("went on ray.")

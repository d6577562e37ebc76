import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.runtime.command.signals import TERMINATED, TWICE_S, stop_on_signals


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those of the tests come back."""
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_comes_twice_at_once_drains_and_a_later_one_does_not() -> None:
    """`timeout` signals the command and then the command's group."""
    stopping, hurry, now = threading.Event(), threading.Event(), [100.0]
    stop_on_signals(stopping, hurry, lambda: now[0])
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stopping.is_set(), hurry.is_set()) == (True, False)
    now[0] += 2 * TWICE_S
    os.kill(os.getpid(), signal.SIGINT)
    assert hurry.is_set()


def test_a_command_that_is_terminated_clears_up_behind_itself() -> None:
    code = """
import signal, sys, tempfile, pathlib
from serving.cli import app
def work(_):
    with tempfile.TemporaryDirectory() as folder:
        print(folder, flush=True)
        signal.pause()
app.run = work
app.main()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.is_dir()
        process.terminate()
    assert process.returncode == TERMINATED
    assert not folder.exists()

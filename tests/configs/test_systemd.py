"""The shipped unit: systemd takes it, it gives the command the time that it needs, and its command line is one."""

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.config import FaultConfig
from serving.runtime.command.signals import TERMINATED
from serving.runtime.ray_cluster import reaper
from tests.e2e.server import CONFIG
from tests.test_cli import gangway

UNIT = Path(__file__).parents[2] / "configs" / "systemd" / "gangway.service"


@pytest.fixture
def service() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(UNIT.read_text())
    return unit["Service"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_systemd_takes_the_unit_without_a_word(tmp_path: Path) -> None:
    """As it is, but for the program, which it wants to be there."""
    lines = UNIT.read_text().splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("ExecStart=")]
    lines[at] = f"ExecStart={sys.executable} {lines[at].partition(' ')[2]}"
    copy = tmp_path / UNIT.name
    copy.write_text("\n".join(lines))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, about Ray's own
def test_the_command_alone_is_told_to_stop_and_has_the_time_to(service: configparser.SectionProxy) -> None:
    from serving.runtime.command.serve import STOP_TIMEOUT_S

    assert service["KillMode"] == "mixed"
    needed = FaultConfig().drain_timeout_s + STOP_TIMEOUT_S + reaper.PATIENCE_S + reaper.KILL_S
    assert int(service["TimeoutStopSec"]) > needed
    assert str(TERMINATED) in service["SuccessExitStatus"].split()


def test_its_command_line_is_one_of_gangways(service: configparser.SectionProxy) -> None:
    program, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == "gangway"
    arguments[arguments.index("/etc/gangway/gangway.yaml")] = str(CONFIG)
    done = gangway(*arguments, "--print-config")
    assert done.returncode == 0, done

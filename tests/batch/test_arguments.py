"""What others on the machine see of the command line."""

import subprocess
import sys

import pytest

SHOW = """
import psutil
from ray._private.utils import get_entrypoint_name
from serving.batch.arguments import hide_arguments
hide_arguments()
print(" ".join(psutil.Process().cmdline()), get_entrypoint_name())
"""


def command_line(*arguments: str) -> str:
    """As `ps` shows it and as Ray would keep it, once the command has begun."""
    return subprocess.run([sys.executable, "-c", SHOW, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("secret", ["s3://KEY:SECRET@bucket/in.jsonl", "https://host/in?X-Amz-Signature=SECRET"])
def test_neither_ps_nor_ray_is_shown_a_credential(secret: str) -> None:
    told = command_line("batch", "local.yaml", secret, "out.jsonl")
    assert "SECRET" not in told
    assert "***" in told
    assert told.count("out.jsonl") == 2


def test_a_command_line_without_one_stays_as_it_is() -> None:
    assert "-c" in command_line("batch", "s3://bucket/in.jsonl")

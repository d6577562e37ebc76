"""Shapes are Locust's: they are asked in a process of its own, by a clock that the test sets."""

import json
import subprocess
import sys

import pytest

from tests.loadtests.run import ROOT

ASK = """
import importlib, json, sys
from types import SimpleNamespace
name, moments = sys.argv[1], json.loads(sys.argv[2])
shape = getattr(importlib.import_module(f"loadtests.shapes.{name}"), name.title())()
options = SimpleNamespace(num_users=20, spawn_rate=4, run_time=1200)
shape.runner = SimpleNamespace(environment=SimpleNamespace(parsed_options=options))
def users(moment):
    shape.get_run_time = lambda: moment
    tick = shape.tick()
    return tick and tick[0]
print(json.dumps([users(moment) for moment in moments]))
"""


@pytest.mark.parametrize(
    ("name", "moments", "users"),
    [
        ("ramp", [0, 600, 1199.9, 1200], [1, 10, 19, None]),
        ("burst", [0, 14.9, 15, 19.9, 20, 1200], [5, 5, 20, 20, 5, None]),
        ("soak", [0, 539, 540, 599, 600, 1200], [20, 20, 1, 1, 20, None]),
    ],
)
def test_a_shape_has_its_users_at_each_moment(name: str, moments: list[float], users: list[int | None]) -> None:
    command = [sys.executable, "-c", ASK, name, json.dumps(moments)]
    assert json.loads(subprocess.check_output(command, cwd=ROOT, text=True)) == users

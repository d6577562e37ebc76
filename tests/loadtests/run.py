"""Locust runs in processes of its own: importing it patches the one that does."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_locust(url: str, results: Path, *options: str, files: str = "loadtests/locustfile.py") -> str:
    """A headless load test without a failure; what it printed. Leaves `results`_stats.csv and the others."""
    command = [sys.executable, "-m", "locust", "-f", files, "--headless", "--host", url, "--stop-timeout", "60"]
    command += ["--csv", str(results), "--csv-full-history", "--html", f"{results}.html", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

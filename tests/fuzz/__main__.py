"""`python -m tests.fuzz --minutes 10`: pass after pass with another seed each, until the time is over or one fails."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

EXAMPLES = 2000
"""Of each property in a pass."""


def main() -> int:
    """Exit code of the first pass that fails; its seed is the last one printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first pass")
    options = parser.parse_args()
    deadline = time.monotonic() + options.minutes * 60
    passes = 0
    while time.monotonic() < deadline:
        print(f"pass {passes + 1}, seed {options.seed + passes}", flush=True)
        if code := _pass(options.seed + passes):
            return code
        passes += 1
    print(f"{passes} passes of {EXAMPLES} examples found nothing")
    return 0


def _pass(seed: int) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(Path(__file__).parent), f"--hypothesis-seed={seed}"]
    return subprocess.run(command, env={**os.environ, "FUZZ_EXAMPLES": str(EXAMPLES)}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

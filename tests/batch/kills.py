"""The proof that nothing is lost and nothing comes twice: a job is killed at random moments, and written all the same.

    python -m tests.batch.kills --times 10 [--elsewhere]

An undisturbed run comes first. In each round one process of the same job is killed with SIGKILL at a random row: in
turn each of `VICTIMS`. A command that ends by it is started again. The output must be the undisturbed one's, byte for
byte; with --elsewhere it lies in an object store (`bucket`). Computes in float32: in bfloat16 the rows beside a row can
change its last digits.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from serving.batch.location import locate
from serving.batch.output.checkpoint import read_progress
from tests.batch.bucket import open_bucket
from tests.e2e.server import CONFIG, MODEL, Process, eventually, gangway

ROWS = 150
END_TIMEOUT_S = 300.0
SETTINGS = ("model.dtype=float32", "fault.max_restarts=100", "batch.max_running=8", f"model.path={MODEL}")
VICTIMS = {
    "rank": "ray::RayTrainWorker",
    "command": "",
    "supervisor": "ray::Supervisor",
    "controller": "ray::TrainController",
    "registry": "ray::Registry",
    "raylet": "/raylet/raylet ",
    "gcs": "/gcs/gcs_server ",
}
"""What the command line of each says; the command is known by itself."""
OUTLIVED = frozenset({"rank", "controller", "registry"})
"""Those without which the command goes on; it may without the others."""


class Batch(Process):
    """`gangway batch` in a process of its own."""

    def __init__(self, source: Path | str, output: str, *options: str) -> None:
        self.output = locate(output)
        overrides = [part for setting in SETTINGS for part in ("--set", setting)]
        super().__init__(*gangway("batch", CONFIG, source, output, *overrides, *options))

    def rows(self) -> int:
        """Rows that count."""
        progress = read_progress(self.output)
        return progress.rows if progress else 0

    def strike(self, victim: str) -> None:
        """Kill one process of the job."""
        if victim == "command":
            self.process.kill()
            return
        named = [process for process in self.processes() if VICTIMS[victim] in _title(process)]
        random.choice(named).send_signal(signal.SIGKILL)

    def content(self) -> bytes:
        """The output, once the job has ended well."""
        assert self.wait(END_TIMEOUT_S) == 0, "\n".join(self.lines)
        with self.output.open() as stream:
            return bytes(stream.read())

    def over(self) -> bool:
        return self.process.poll() is not None


def write_rows(path: Path, rows: int) -> None:
    """Prompts of all lengths, greedy and drawn, and a broken one."""
    with path.open("w") as stream:
        for number in range(rows):
            parameters = {"max_tokens": 4 + number * 13 % 37, "temperature": number % 2}
            prompt = f"{'Count to ten. ' * (number % 7)}What is {number} plus {number}?"
            line = json.dumps({"inputs": prompt, "parameters": parameters})
            stream.write(line[: -5 if number == 3 else None] + "\n")


def undisturbed(source: Path, output: str) -> bytes:
    """What a run that nothing happens to writes."""
    return run_to_end(lambda: Batch(source, output))


def disturbed(source: Path, output: str, strikes: Sequence[tuple[str, int]]) -> bytes:
    """What is written when victims are killed at rows, one after the other. A command that ends is started again."""
    batch = Batch(source, output)
    try:
        for victim, row in strikes:
            eventually(lambda row=row, one=batch: one.rows() >= row or one.over(), END_TIMEOUT_S)  # type: ignore[misc]
            assert not batch.over(), "the job has ended too early:\n" + "\n".join(batch.lines)
            batch.strike(victim)
            if victim not in OUTLIVED and batch.wait(END_TIMEOUT_S) != 0:
                batch.kill()
                batch = Batch(source, output)
        return batch.content()
    finally:
        batch.kill()


def run_to_end(start: Callable[[], Batch]) -> bytes:
    """What is written."""
    batch = start()
    try:
        return batch.content()
    finally:
        batch.kill()


def _title(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS), help="in turn")
    parser.add_argument("--elsewhere", action="store_true", help="write to an object store")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, open_bucket({}) as bucket:
        source = Path(folder) / "in.jsonl"
        write_rows(source, options.rows)
        expected = undisturbed(source, f"{folder}/expected.jsonl")
        print(f"undisturbed: {len(expected.splitlines())} rows, {len(expected)} bytes", flush=True)
        for round_ in range(options.times):
            victim, row = options.victims[round_ % len(options.victims)], random.randrange(1, options.rows // 2)
            began = time.monotonic()
            name = f"{round_}.jsonl"
            output = bucket.address(name) if options.elsewhere else f"{folder}/{name}"
            same = disturbed(source, output, [(victim, row)]) == expected
            verdict = "the same bytes" if same else "OTHER BYTES"
            print(
                f"round {round_}: {victim} killed at row {row}: {verdict}, {time.monotonic() - began:.0f} s", flush=True
            )
            if not same:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Memory over many rows: `python -m tests.batch.growth --rows 1000000`.

Generated rows of a few tokens go through the real reader, application, gateway and ledger, over a fake group in place
of the ranks, whose memory does not know of rows. Prints the resident memory as it goes; exit 1 if the second half of
the rows made it grow by more than 16 MiB.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

import psutil

from serving.batch.in_process import Inside, application
from serving.batch.input.jsonl import open_source
from serving.batch.job import Job
from serving.batch.location import locate
from serving.batch.output.writer import open_ledger
from serving.gateway.service import Service
from tests.fake_engine import FakeGroup, fake_group, until
from tests.gateway.conftest import demo_tokenizer, make_config

WINDOW = 256
MOST_GROWTH_MIB = 16
LOOKS = 20


def write_rows(path: Path, rows: int) -> None:
    """One after the other: the file is never in memory."""
    with path.open("w") as stream:
        for number in range(rows):
            stream.write(json.dumps({"inputs": f"row {number}", "parameters": {"max_tokens": 2}}) + "\n")


async def run(folder: Path, rows: int) -> list[float]:
    """Resident MiB at each look: after every twentieth of the rows."""
    write_rows(folder / "in.jsonl", rows)
    config = make_config(f"http.max_waiting={2 * WINDOW}")
    with fake_group() as group:
        service = Service(config, demo_tokenizer(), group)
        group.start()
        await service.start()
        await until(lambda: service.ready)
        source = open_source(str(folder / "in.jsonl"), 1 << 20)
        with open_ledger(locate(str(folder / "out.jsonl")), "growth", resume=False, overwrite=False) as ledger:
            assert ledger is not None
            looks = Looks(application(service, config), group, rows)
            await Job(source.rows(0, 0), looks.post, ledger, WINDOW).run()
        await service.stop()
    return looks.seen


class Looks:
    """Passes rows on, and looks at the memory whenever another twentieth of them is answered."""

    def __init__(self, app: Inside, group: FakeGroup, rows: int) -> None:
        self._app = app
        self._group = group
        self._every = rows // LOOKS
        self._answered = 0
        self.seen: list[float] = []

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        answer = await self._app.post(path, body)
        self._answered += 1
        if self._answered % self._every == 0:
            self.seen.append(psutil.Process().memory_info().rss / 2**20)
            print(f"{self._answered} rows: {self.seen[-1]:.0f} MiB", flush=True)
            assert self._group.engine is not None
            self._group.engine.submitted.clear()  # the fake keeps what it was asked, for tests to see
        return answer


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen = asyncio.run(run(Path(folder), options.rows))
    return int(seen[-1] - seen[LOOKS // 2] > MOST_GROWTH_MIB)


if __name__ == "__main__":
    sys.exit(main())

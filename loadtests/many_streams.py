"""`python -m loadtests.many_streams --streams 500`: how many streams from one client come to an end, beside idle ones
and half-sent requests.

Each place streams one completion after another until the time is over. An answer is complete, refused with 429 (its
place then waits as long as the server asks), or broken; one that says nothing for `SILENCE_S` hangs. Exits 1 unless all
were complete or refused.
"""

import argparse
import asyncio
import json
import resource
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import httpx

from loadtests.events import data

SILENCE_S = 120.0
"""Longer than a full queue takes to be served, and than a restart of the group."""
CONNECT_S = 30.0

HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n"
"""Of a request whose body never comes."""


@dataclass(frozen=True)
class Others:
    """Who else is connected, each as a count."""

    idle: int = 0
    """Before the streams; they never say anything."""
    half_sent: int = 0
    """From the first token on; each sends a request's head and no body."""


NOBODY = Others()


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.many_streams", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--streams", type=int, default=500, help="at a time")
    parser.add_argument("--idle", type=int, default=0, help="connections besides that never say anything")
    parser.add_argument("--half-sent", type=int, default=0, help="requests besides, without a body, once a stream runs")
    parser.add_argument("--seconds", type=float, default=60.0, help="after which no stream is begun")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    options = parser.parse_args()
    others = Others(options.idle, options.half_sent)
    allow_files(options.streams + others.idle + others.half_sent)
    ends = asyncio.run(run(options.url, options.streams, options.seconds, options.tokens, others))
    for end, count in ends.most_common():
        print(f"{count:7d}  {end}")
    return 0 if set(ends) <= {"complete", "refused"} else 1


def allow_files(connections: int) -> None:
    """Raise the limit of this process as far as it may be."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 100
    if most != resource.RLIM_INFINITY and wanted > most:
        sys.exit(f"{connections} connections need {wanted} open files; this user may have {most} (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def run(url: str, streams: int, seconds: float, tokens: int, others: Others = NOBODY) -> Counter[str]:
    """How the streams ended, each way with its count."""
    ends: Counter[str] = Counter()
    begun = asyncio.Event()
    over = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=streams)
    timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)

    async def place(client: httpx.AsyncClient, number: int) -> None:
        going_on = True
        while going_on:
            end, pause_s = await stream(client, number, tokens, begun)
            ends[end] += 1
            await asyncio.sleep(pause_s)
            going_on = time.monotonic() < over

    async def attack() -> None:
        await begun.wait()
        for _ in range(others.half_sent):
            with suppress(OSError):  # let go, or kept out: what counts is the streams
                held.append(await _connect(url, HEAD))

    held = [await _connect(url) for _ in range(others.idle)]
    attacking = asyncio.create_task(attack())
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout, trust_env=False) as client:
        await asyncio.gather(*(place(client, number) for number in range(streams)))
    attacking.cancel()
    print(f"{len(held)} others were connected")
    for connection in held:
        connection.close()
    return ends


async def _connect(url: str, begin: bytes = b"") -> asyncio.StreamWriter:
    where = httpx.URL(url)
    _, writer = await asyncio.wait_for(asyncio.open_connection(where.host, where.port or 80), CONNECT_S)
    writer.write(begin)
    return writer


async def stream(client: httpx.AsyncClient, number: int, tokens: int, begun: asyncio.Event) -> tuple[str, float]:
    """How one answer ended, and the seconds to wait before the next. `begun` is set by its first token."""
    body = {"inputs": f"Story {number}.", "raw": True, "stream": True}
    body |= {"parameters": {"max_tokens": tokens, "ignore_eos": True, "seed": number}}
    try:
        async with client.stream("POST", "/predict", json=body) as response:
            if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
                return "refused", float(response.headers["Retry-After"])
            if response.status_code != httpx.codes.OK:
                return f"status {response.status_code}", 1.0
            return await _read(response, tokens, begun), 0.0
    except httpx.TimeoutException:
        return f"nothing for {SILENCE_S:g} s", 1.0
    except httpx.HTTPError as error:
        return type(error).__name__, 1.0


async def _read(response: httpx.Response, tokens: int, begun: asyncio.Event) -> str:
    made, last = 0, b""
    async for last in data(response.aiter_bytes()):
        if last == b"[DONE]":
            continue
        event = json.loads(last)
        if "error" in event:
            return f"error: {event['error']['type']}"
        begun.set()
        made = (event.get("usage") or {}).get("completion_tokens", made)
    return "complete" if last == b"[DONE]" and made == tokens else "ended early"


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.api.loop_hold`: how long a body can hold the gateway's event loop, and what memory it takes.

Each body is handed to the application in this process, behind which an engine answers that has no model, while a clock
ticks in the same loop: the longest time between two ticks is printed. All bodies fit `http.max_body_bytes`; most are
refused. Exits 1 if any holds the loop for longer than 50 ms.
"""

import asyncio
import gc
import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from starlette.types import Message, Scope

from serving.api.app import create_app
from serving.gateway.service import Service
from serving.gateway.tokenizer import Tokenizer
from tests.fake_engine import fake_group, until
from tests.gateway.conftest import make_config

SIZE = 4 * 1024 * 1024 - 1024
LIMIT_S = 0.05
CHUNK = 64 * 1024
CONTEXTS = (2048, 131_072)
COMPLETIONS, CHAT, PREDICT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/predict", "/v1/embeddings"
ONE = b',"max_tokens":1}'
"""The end of a body: what an answer's tokens cost is another matter."""
PART = b'{"type":"text","text":""}'
MESSAGE = b'{"role":"user","content":""}'
LONG_MESSAGE = b'{"role":"user","content":"%s"}' % (b"word " * 200)


def many(one: bytes, count: int | None = None) -> bytes:
    """A list of as many as fit, or of so many."""
    return b"[" + b",".join([one] * (count or SIZE // (len(one) + 1))) + b"]"


def text(one: bytes) -> bytes:
    return b'"' + one * (SIZE // len(one)) + b'"'


def chat(content: bytes) -> bytes:
    return b'{"messages":[{"role":"user","content":' + content + b"}]" + ONE


def bodies() -> Iterator[tuple[str, str, bytes]]:
    """What it is, where it goes, and the body."""
    for path, field in ((COMPLETIONS, b"prompt"), (EMBEDDINGS, b"input"), (PREDICT, b"inputs")):
        for name, value in VALUES.items():
            yield (
                f"{field.decode()}: {name}",
                path,
                b'{"' + field + b'":' + value + (ONE if path == COMPLETIONS else b"}"),
            )
    for name, value in VALUES.items():
        yield f"content: {name}", CHAT, chat(value)
        yield f"messages: {name}", CHAT, b'{"messages":' + value + ONE
    one = b',"parameters":{"max_tokens":1}}'
    yield "chats", PREDICT, b'{"inputs":' + many(b"[" + MESSAGE + b"]") + one
    yield "64 chats of 150 messages", PREDICT, b'{"inputs":' + many(many(MESSAGE, 150), 64) + one
    for name in ("stop", "tools", "metadata", "logit_bias", "stop_token_ids", "stream_options", "usage"):
        yield f"{name}: objects", CHAT, chat(b'"x"')[:-1] + b',"%s":' % name.encode() + many(b"{}") + b"}"
        keys = json.dumps(dict.fromkeys(map(str, range(250_000)), 1)).encode()
        yield f"{name}: keys", CHAT, chat(b'"x"')[:-1] + b',"%s":' % name.encode() + keys + b"}"
    yield "unknown keys", CHAT, json.dumps(dict.fromkeys(map(str, range(250_000)), 1)).encode()
    yield "one key again and again", COMPLETIONS, b"{" + b",".join([b'"prompt":"x"'] * (SIZE // 14)) + b"}"
    yield "an unknown key of its own length", CHAT, b"{" + text(b"k") + b":1}"
    yield "nothing", CHAT, b" " * SIZE
    prompts = b'{"max_tokens":1,"n":16,"prompt":' + many(b"7", 100_000) + b"}"
    yield "16 answers to 100,000 ids", COMPLETIONS, prompts
    yield (
        "16 answers of 1,000 tokens with 20 alternatives",
        COMPLETIONS,
        (b'{"max_tokens":1000,"n":16,"logprobs":20,"prompt":[7]}'),
    )


VALUES = {
    "a text": text(b"a word, "),
    "a text without a space": text(b"a"),
    "a text of line ends": text(b"\\n"),
    "a text of accents": text("é".encode()),
    "a text of escaped accents": text(b"\\u00e9"),
    "texts": many(b'"x"'),
    "2,000 texts": many(b'"' + b"a word, " * 200 + b'"', 2000),
    "ids": many(b"12345"),
    "ids of one digit": many(b"7"),
    "lists of ids": many(b"[7]"),
    "64 lists of ids": many(many(b"12345", 10_000), 64),
    "objects": many(b"{}"),
    "parts": many(PART),
    "9,000 parts": many(PART, 9000),
    "messages": many(MESSAGE),
    "4,096 messages": many(MESSAGE, 4096),
    "long messages": many(LONG_MESSAGE),
    "nested lists": b"[" * (SIZE // 2) + b"]" * (SIZE // 2),
    "nested objects": b'{"a":' * (SIZE // 6) + b"1" + b"}" * (SIZE // 6),
    "numbers of 4,300 digits": many(b"9" * 4300),
    "one number": b"9" * SIZE,
    "a fraction": b"0." + b"1" * SIZE,
}


class Clock:
    """Ticks in the event loop. Between two ticks no more counts than this process has computed: others may run too."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        last = time.perf_counter(), time.process_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter(), time.process_time()
            self.longest = max(self.longest, min(now[0] - last[0], now[1] - last[1]))
            last = now


async def post(app: Any, path: str, body: bytes) -> tuple[int, bytes]:
    """The status and the beginning of the answer."""
    parts = [body[at : at + CHUNK] for at in range(0, len(body), CHUNK)]
    coming = iter([{"type": "http.request", "body": part, "more_body": True} for part in parts])
    status, said, answered = 0, b"", asyncio.Event()

    async def receive() -> Message:
        last: Message = {"type": "http.request", "body": b"", "more_body": False}
        message = next(coming, None)
        if message is not None:
            return message
        if not ended:
            ended.append(True)
            return last
        await answered.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status, said
        status = message.get("status", status)
        said = said or message.get("body", b"")[:300]

    ended: list[bool] = []
    scope: Scope = {"type": "http", "method": "POST", "scheme": "http", "path": path, "query_string": b""}
    scope["headers"] = [(b"host", b"127.0.0.1")]
    await app(scope, receive, send)
    answered.set()
    return status, said


async def measure(context: int, only: str) -> float:
    """The longest hold of all."""
    config = make_config(f"model.max_model_len={context}", "engine.max_running=64", "http.max_waiting=256")
    worst = 0.0
    with fake_group() as group:
        group.behaviour.pause_s = 0.002  # an engine without a pause is no engine, and its messages fill the loop
        service = Service(config, Tokenizer(config.model), group)
        group.start()
        await service.start()
        await until(lambda: service.ready)
        app = create_app(service, config)
        gc.collect()
        gc.freeze()  # as the deployment does
        for name, path, body in bodies():
            if only not in f"{path} {name}":
                continue
            clock, begun = Clock(), time.perf_counter()
            ticking = asyncio.create_task(clock.run())
            status, said = await post(app, path, body)
            await asyncio.sleep(0.005)
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking
            assert status in {200, 400}, said
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            worst = max(worst, clock.longest)
            took = time.perf_counter() - begun
            told = json.loads(said)["error"]["message"][:60] if status != 200 else ""
            held = f"{clock.longest * 1000:6.0f} ms held"
            print(f"{held} {took:6.2f} s {peak:6.0f} MiB peak  {status} {path} {name}  {told}", flush=True)
        await service.stop()
    return worst


def main() -> int:
    """The exit code."""
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    worst = 0.0
    for context in CONTEXTS:
        print(f"a context of {context} tokens:")
        worst = max(worst, asyncio.run(measure(context, only)))
    print(f"the longest hold: {worst * 1000:.0f} ms")
    return 0 if worst <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())

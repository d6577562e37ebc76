"""A request that breaks the group: whenever it has got a token of a new generation, a rank of that one is killed.

To the server it looks like any request that a rank dies of, at any length and on any machine: nothing in it knows the
drill. It must be given up, and an equal one refused without another break.
"""

import asyncio
import itertools
import json
import secrets
from collections.abc import Callable
from typing import Any

import httpx

from serving.errors import OperatorError
from serving.tools.drill.events import data
from serving.tools.drill.faults import SignalFault, WrongTarget

GIVEN_UP = "request_breaks_group"
_MAX_TOKENS = 200
_POLL_S = 0.05
"""From one look at the status to the next."""


class PoisonFault:
    """One such request a round, each with a text of its own: an equal one would be refused."""

    name = "poison"
    restarts = True

    def __init__(self, connect: Callable[[], httpx.AsyncClient]) -> None:
        self._connect = connect
        self._numbers = itertools.count(1)
        self._struck: set[int] = set()
        """Generations that were broken."""

    def aim(self, status: dict[str, Any]) -> None:
        _last_rank(status)

    async def strike(self) -> None:
        """Ask until it is given up, and once more. Raises `OperatorError` when anything else comes of it."""
        prompt = f"Poison {next(self._numbers)} {secrets.token_hex(8)}"
        async with self._connect() as client:
            _require_given_up(await self._ask(client, prompt), "the request that breaks the group")
            before = len(self._struck)
            _require_given_up(await self._ask(client, prompt), "an equal request after it")
            if len(self._struck) != before:
                raise OperatorError("poison: an equal request was computed, though the first was given up")

    async def heal(self, *, restarted: bool) -> None:
        """It was given up."""

    async def _ask(self, client: httpx.AsyncClient, prompt: str) -> str:
        """The code of the error that it ends in; what it ends in otherwise."""
        parameters = {"max_tokens": _MAX_TOKENS, "ignore_eos": True, "temperature": 0}
        body = {"inputs": prompt, "raw": True, "stream": True, "parameters": parameters}
        async with client.stream("POST", "/predict", json=body) as response:
            if response.status_code != httpx.codes.OK:
                return _code(json.loads(await response.aread()))
            token = asyncio.Event()
            reading = asyncio.create_task(_read(response, token))
            try:
                while not reading.done():
                    await self._break_once(client, reading, token)
                return await reading
            finally:
                reading.cancel()

    async def _break_once(self, client: httpx.AsyncClient, reading: asyncio.Task[str], token: asyncio.Event) -> None:
        """Kill a rank of the generation that runs, if none of it was, once a token has come that can only be its own.

        Tokens are read all the time, so what an earlier generation has sent is read before the next one is seen.
        """
        seen = await _status(client)
        if seen["state"] != "ready" or seen["generation"] in self._struck:
            await asyncio.wait([reading], timeout=_POLL_S)
            return
        token.clear()
        waiting = asyncio.create_task(token.wait())
        await asyncio.wait([reading, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not reading.done() and (await _status(client))["generation"] == seen["generation"]:
            self._struck.add(seen["generation"])
            await _last_rank(seen).strike()


async def _read(response: httpx.Response, token: asyncio.Event) -> str:
    """The code of the error that the stream ends in; sets `token` with each that comes before."""
    async for event in data(response.aiter_bytes()):
        piece = {} if event == b"[DONE]" else json.loads(event)
        if "error" in piece:
            return _code(piece)
        token.set()
    return "a complete answer"


async def _status(client: httpx.AsyncClient) -> dict[str, Any]:
    status: dict[str, Any] = (await client.get("/v1/status")).json()
    return status


def _require_given_up(outcome: str, what: str) -> None:
    if outcome != GIVEN_UP:
        raise OperatorError(f"poison: {what} should have ended in {GIVEN_UP}, not in {outcome}")


def _last_rank(status: dict[str, Any]) -> SignalFault:
    """Raises `WrongTarget` when there is none, or it is not on this machine."""
    if not status["ranks"]:
        raise WrongTarget("poison: the group has no rank")
    last = max(entry["rank"] for entry in status["ranks"])
    fault = SignalFault(f"kill-rank{last}", last, stop=False)
    fault.aim(status)
    return fault


def _code(answer: dict[str, Any]) -> str:
    return str(answer["error"]["code"] or answer["error"]["message"])

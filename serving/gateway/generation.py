"""One accepted request as its client sees it: choices that gather text until the reader takes it.

Text, stop strings and log-probabilities are worked out when tokens arrive, so that a stop string ends the computation
at once even when nobody reads. What a slow reader leaves behind is bounded by its own `max_tokens`.
"""

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import msgspec

from serving.gateway.detokenizer import Detokenizer
from serving.gateway.journal import Entry
from serving.gateway.stops import StopFinder
from serving.messages import Delta, FinishReason, Pooling, RequestId, Sampling, TokenId, TokenLogprobs

_SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ids to continue, and by how many tokens at most."""

    tokens: list[TokenId]
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What a client asked for, checked and tokenized."""

    id: RequestId
    prompts: Sequence[Prompt]
    sampling: Sampling
    """Its `seed` and `max_tokens` are replaced for each sequence."""
    seed: int | None = None
    """None: one is drawn for each prompt."""
    n: int = 1
    """Sequences per prompt."""
    stop: tuple[str, ...] = ()
    timeout_s: float | None = None
    priority: int = 0
    stream: bool = False
    """Wake the reader at each step, not only at the end."""
    pooling: Pooling | None = None
    """Set: each prompt becomes a vector (`Choice.embedding`) and no text."""
    cache_salt: str = ""
    """Requests with another one never find its prompts in the prefix cache."""


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """A token with its log-probabilities, and where its text begins in the choice's text."""

    token: TokenId
    logprobs: TokenLogprobs
    text_offset: int
    first: bool = False
    """There is no text at all before it, not even the prompt's."""


@dataclass(slots=True)
class Piece:
    """What a choice gained since its reader last looked."""

    text: str = ""
    tokens: list[TokenPiece] = field(default_factory=list)
    """Only when log-probabilities were asked for."""
    finish_reason: FinishReason | None = None
    first: bool = False
    """Nothing of this choice was taken before."""


class Choice:
    """The text of one sequence."""

    def __init__(self, index: int, entry: Entry, stop: Sequence[str], detokenizer: Detokenizer) -> None:
        self.index = index
        self.entry = entry
        self.finish_reason: FinishReason | None = None
        self.completion_tokens = 0
        """Tokens computed for it, an end-of-sequence token included."""
        self.first_token_at: float | None = None
        self.last_token_at = 0.0
        self.embedding: bytes | None = None
        """The vector of a request with `pooling`, once `finish_reason` is set."""
        self._detokenizer = detokenizer
        self._stops = StopFinder(stop) if stop else None
        self._texts: list[str] = []
        self._given_chars = 0
        self._decoded_chars = 0
        self._tokens: list[TokenPiece] = []
        self._stopped = False
        self._untaken = True

    def push(self, delta: Delta) -> bool:
        """Take what a step brought. True: a stop string ended it, and the engine need not go on."""
        self.embedding = delta.embedding
        textual = delta.tokens[:-1] if delta.finish == "stop" else delta.tokens
        for place, token in enumerate(textual):
            self._push_token(token, delta.logprobs[place] if delta.logprobs else None)
            if self._stopped:
                break
        else:
            self.completion_tokens += len(delta.tokens) - len(textual)
        if delta.finish is not None and not self._stopped:
            self._finish(delta.finish)
        return self._stopped

    def _push_token(self, token: TokenId, logprobs: TokenLogprobs | None) -> None:
        self.completion_tokens += 1
        if logprobs is not None:
            self._tokens.append(TokenPiece(token, logprobs, self._decoded_chars, self._detokenizer.at_start))
        piece = self._detokenizer.push(token)
        self._decoded_chars += len(piece)
        scanned = self._stops is not None and self.completion_tokens > self.entry.sampling.min_tokens
        self._give(piece, scanned)

    def _give(self, piece: str, scanned: bool) -> None:
        if scanned and self._stops is not None:
            piece, self._stopped = self._stops.push(piece)
        if piece:
            self._texts.append(piece)
            self._given_chars += len(piece)
        if self._stopped:
            self.finish_reason = "stop"

    def _finish(self, reason: FinishReason) -> None:
        self._give(self._detokenizer.flush(), scanned=True)
        if self._stopped:
            return
        self.finish_reason = reason
        if self._stops is not None:
            self._give(self._stops.flush(), scanned=False)

    def take(self) -> Piece | None:
        """All that came since the last call, or None. The piece with `finish_reason` is the last."""
        tokens = self._take_tokens()
        if not (self._texts or tokens or self.finish_reason):
            return None
        piece = Piece("".join(self._texts), tokens, self.finish_reason, self._untaken)
        self._texts.clear()
        self._untaken = False
        return piece

    def _take_tokens(self) -> list[TokenPiece]:
        """Those whose text was given out; at an end without a stop string also those that have no text."""
        everything = self.finish_reason is not None and not self._stopped
        ready = [token for token in self._tokens if everything or token.text_offset < self._given_chars]
        self._tokens = [] if self.finish_reason else self._tokens[len(ready) :]
        return ready


class Generation:
    """A request under way. Leaving it as a context manager cancels whatever has not ended."""

    def __init__(
        self, request: GenerationRequest, choices: Sequence[Choice], release: Callable[["Generation"], None]
    ) -> None:
        self.request = request
        self.choices = choices
        self.accepted_at = time.monotonic()
        self.deadline: asyncio.TimerHandle | None = None
        self._open = {choice.index for choice in choices}
        self._taken: set[int] = set()
        self._error: Exception | None = None
        self._wake = asyncio.Event()
        self._release = release

    @property
    def outcome(self) -> str:
        """How it ended, for the log and the metrics."""
        return "completed" if self._error is None else type(self._error).__name__

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from the prefix cache, over all prompts."""
        return sum(choice.entry.cached_tokens for choice in self.choices[:: self.request.n])

    def advanced(self, choice: Choice) -> None:
        """`choice` has gained something."""
        if choice.finish_reason is not None:
            self._open.discard(choice.index)
        if self.request.stream or not self._open:
            self._wake.set()

    def fail(self, error: Exception) -> None:
        """End it with an error; what came before can still be read."""
        self._error = self._error or error
        self._wake.set()

    async def next(self) -> list[tuple[Choice, Piece]]:
        """What all choices gained since the last call, waiting for something; empty at the end.

        Raises the error that ended the request, once everything before it was read.
        """
        while len(self._taken) < len(self.choices):
            await self._wake.wait()
            self._wake.clear()
            pieces = self._take()
            if pieces:
                if self._error is not None:
                    self._wake.set()
                return pieces
            if self._error is not None:
                raise self._error
        return []

    def _take(self) -> list[tuple[Choice, Piece]]:
        pieces = []
        for choice in self.choices:
            piece = None if choice.index in self._taken else choice.take()
            if piece is None:
                continue
            pieces.append((choice, piece))
            if piece.finish_reason is not None:
                self._taken.add(choice.index)
        return pieces

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._release(self)


def sequences(request: GenerationRequest) -> list[Entry]:
    """A journal entry for each prompt and each of its `n` continuations, prompt by prompt."""
    entries = []
    for place, prompt in enumerate(request.prompts):
        seed = random.getrandbits(_SEED_BITS) if request.seed is None else request.seed
        for child in range(request.n):
            sampling = msgspec.structs.replace(
                request.sampling, seed=child_seed(seed, child), max_tokens=prompt.max_tokens
            )
            index = place * request.n + child
            entries.append(
                Entry(
                    id=f"{request.id}-{index}",
                    prompt=prompt.tokens,
                    sampling=sampling,
                    priority=request.priority,
                    pooling=request.pooling,
                    cache_salt=request.cache_salt,
                )
            )
    return entries


def child_seed(seed: int, child: int) -> int:
    """The seed of continuation `child` of a prompt: `seed` itself for the first, an unrelated one for each other."""
    if child == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{child}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _SEED_BITS)

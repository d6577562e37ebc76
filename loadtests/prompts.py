"""What each user of a load test sends: the same seed, kind and number of a user give the same requests in one order.

Nothing a server answers goes into a later request: a chat's history holds answers that were made up here, or two
servers would be sent different prompts.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_TEXT = (
    "time people water house light river stone paper winter morning letter garden music window market silver story "
    "engine island doctor mother bridge summer forest bread number answer circle corner dinner flower friend horse "
    "king lamp mountain night ocean picture question road school table under valley weather yellow young always "
    "before carry during every follow great happy inside journey keep listen moment never open point quiet reach "
    "small travel until visit while across build"
)
WORDS = _TEXT.split()
SHORT_WORDS = (5, 40)
DOCUMENT_WORDS = (600, 900)
ANSWER_TOKENS = (16, 48)
TURNS = 6
"""Questions of one chat; after that another begins."""
SAMPLINGS: tuple[dict[str, Any], ...] = ({"temperature": 0}, {"temperature": 0.8, "top_p": 0.9}, {"top_k": 20})
MISTAKES: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("/predict", {}, 400),
    ("/predict", {"inputs": ""}, 400),
    ("/predict", {"inputs": 7}, 400),
    ("/predict", {"inputs": "a", "parameters": {"max_tokens": -1}}, 400),
    ("/predict", {"inputs": "a", "parameters": {"temprature": 1}}, 400),
    ("/predict", {"inputs": "a", "parameters": {"top_p": 2}}, 400),
    ("/predict", {"inputs": [[{"role": "user"}]]}, 400),
    ("/v1/completions", {"prompt": "a", "model": "no-such-model"}, 404),
    ("/v1/chat/completions", {"messages": []}, 400),
)
"""Route, body, and the status that refuses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, and what its answer must be."""

    row: str
    """Its name in the statistics."""
    path: str
    body: dict[str, Any]
    tokens: int = 0
    """Completion tokens that the answer must have, over all its sequences."""
    status: int = 200
    leave_after: int | None = None
    """Events after which the client closes the connection."""

    @property
    def streams(self) -> bool:
        """Is the answer server-sent events?"""
        return bool(self.body.get("stream")) and self.status == 200


@dataclass
class Author:
    """Writes one user's requests."""

    seed: int
    kind: str
    number: int
    model: str = ""
    """Served name, which chats must give."""
    chance: random.Random = field(init=False)
    pauses: random.Random = field(init=False)
    """Drawn from apart, so that pacing does not change prompts."""
    _history: list[dict[str, str]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.seed}/{self.kind}/{self.number}")
        self.pauses = random.Random(f"{self.seed}/{self.kind}/{self.number}/pauses")

    def plain(self) -> Ask:
        """A whole answer; every fourth is two sequences."""
        n = 2 if self.chance.random() < 0.25 else 1
        return self._predict("plain", SHORT_WORDS, n=n)

    def stream(self, row: str = "stream") -> Ask:
        """A short question whose answer is streamed."""
        return self._predict(row, SHORT_WORDS, stream=True)

    def document(self) -> Ask:
        """A prompt that takes several steps to compute."""
        return self._predict("document", DOCUMENT_WORDS, stream=True)

    def impatient(self) -> Ask:
        """A client that goes away in the middle of a long answer."""
        leave_after = self.chance.randint(1, 8)
        return self._predict("impatient", SHORT_WORDS, stream=True, answer=(200, 200), leave_after=leave_after)

    def burst(self, size: int) -> list[Ask]:
        """Requests to be sent at once; one beginning, as a form letter has."""
        opening = self._text(SHORT_WORDS)
        return [self._predict("burst", SHORT_WORDS, stream=True, opening=opening) for _ in range(size)]

    def chat(self) -> Ask:
        """The next turn of a conversation, with all that was said before."""
        if len(self._history) >= 2 * TURNS:
            self._history.clear()
        self._history.append({"role": "user", "content": self._text(SHORT_WORDS)})
        tokens = self.chance.randint(*ANSWER_TOKENS)
        body = {
            "model": self.model,
            "messages": list(self._history),
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._parameters(tokens),
        }
        self._history.append({"role": "assistant", "content": self._text(SHORT_WORDS)})
        return Ask(row="chat", path="/v1/chat/completions", body=body, tokens=tokens)

    def mistake(self) -> Ask:
        """A request that must be refused."""
        path, body, status = self.chance.choice(MISTAKES)
        return Ask(row="wrong", path=path, body=({"model": self.model} if "/v1/" in path else {}) | body, status=status)

    def _predict(
        self,
        row: str,
        words: tuple[int, int],
        *,
        stream: bool = False,
        answer: tuple[int, int] = ANSWER_TOKENS,
        n: int = 1,
        opening: str = "",
        leave_after: int | None = None,
    ) -> Ask:
        tokens = self.chance.randint(*answer)
        parameters = self._parameters(tokens)
        if n > 1:
            parameters |= {"n": n, "temperature": 0.8}
        body = {"inputs": f"{opening} {self._text(words)}".strip(), "stream": stream, "parameters": parameters}
        return Ask(row=row, path="/predict", body=body, tokens=tokens * n, leave_after=leave_after)

    def _parameters(self, tokens: int) -> dict[str, Any]:
        sampling = self.chance.choice(SAMPLINGS)
        return {"max_tokens": tokens, "ignore_eos": True, "seed": self.chance.randrange(2**31), **sampling}

    def _text(self, words: tuple[int, int]) -> str:
        return " ".join(self.chance.choices(WORDS, k=self.chance.randint(*words)))


WRITERS: dict[str, Callable[[Author], list[Ask]]] = {
    "plain": lambda author: [author.plain()],
    "stream": lambda author: [author.stream()],
    "chat": lambda author: [author.chat()],
    "documents": lambda author: [author.document()],
    "bursts": lambda author: author.burst(6),
    "impatient": lambda author: [author.impatient()],
    "wrong": lambda author: [author.mistake()],
    "open": lambda author: [author.stream("open")],
}
"""Tag of a user class -> what such a user sends next, all of it at once."""

"""Tokens beside their log-probabilities: joined they are the text."""

import codecs
from typing import Any

from tests.interop.case import Asker, case

ACCENTED = "日本語: こんにちは世界。Ελληνικά: καλημέρα κόσμε. Emoji: 👩‍👩‍👧 🎉 👩‍👩‍👧 🎉"
"""What makes a small model go on with characters that are several tokens."""


@case
def the_tokens_of_a_completion_are_its_text(ask: Asker) -> None:
    choice = ask.completion(ACCENTED, max_tokens=16, logprobs=1)["choices"][0]
    tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
    assert _whole(b"".join(_unescaped(token) for token in tokens), choice["text"])
    decoder, characters = codecs.getincrementaldecoder("utf-8")("replace"), 0
    for token, offset in zip(tokens, offsets, strict=True):
        assert offset == characters, (tokens, offsets)
        characters += len(decoder.decode(_unescaped(token)))


@case
def the_bytes_of_a_chats_tokens_are_its_text(ask: Asker) -> None:
    asked = {"role": "user", "content": f"Repeat this exactly: {ACCENTED}"}
    body = {"messages": [asked], "max_tokens": 16, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    choice = ask.post("/v1/chat/completions", body).json()["choices"][0]
    content: list[Any] = choice["logprobs"]["content"]
    assert content
    assert _whole(b"".join(bytes(one["bytes"]) for one in content), choice["message"]["content"])
    shown = [other["token"] for one in content for other in (one, *one["top_logprobs"])]
    assert not any("\ufffd" in token for token in shown), shown


@case
def the_first_word_of_a_completion_keeps_its_space(ask: Asker) -> None:
    assert ask.completion("The capital of France", max_tokens=1)["choices"][0]["text"].startswith(" ")


def _whole(raw: bytes, text: str) -> bool:
    """Whether these bytes are the text, but for a character that the end of the answer has cut."""
    return raw.decode(errors="replace") == text


def _unescaped(token: str) -> bytes:
    """As clients of OpenAI's read its completions' tokens."""
    if not token.startswith("bytes:"):
        return token.encode()
    return token.removeprefix("bytes:").encode("ascii").decode("unicode_escape").encode("latin-1")

"""Token ids to text, piece by piece. A sequence's text is what its tokens add to the text of its prompt.

Two ways. Byte-level vocabularies (GPT-2's family: Llama 3, Qwen, SmolLM) are a plain table from id to bytes, and UTF-8
can be decoded incrementally. For all others (sentencepiece's family: Llama 2, Mistral, Gemma) the tokenizer decodes a
short window of ids again and again, since what an id looks like depends on whether it is the first; their raw bytes
are decoded as above. Both hold back bytes that are not yet a whole character, and begin by taking in the end of the
prompt: the space before an answer's first word is part of the answer, and so is a character that the prompt has begun.

Bytes that are no UTF-8 become U+FFFD one by one and their neighbours stay what they are. Hugging Face's decoder makes
U+FFFD of every byte of such a row; otherwise the pieces joined are what it makes of prompt and answer together.
"""

import codecs
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from serving.messages import TokenId

REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """The text of one sequence."""

    @property
    def at_start(self) -> bool:
        """Whether there is no text at all before the next token: some decoders drop the space that it begins with."""
        ...

    def push(self, token: TokenId) -> str:
        """Text that is certain now that `token` came; often empty, when it ends in the middle of a character."""
        ...

    def flush(self) -> str:
        """What is left at the end of the sequence."""
        ...


class ByteDetokenizer:
    """For byte-level vocabularies; costs a table look-up per token."""

    at_start = False

    def __init__(self, token_bytes: Callable[[TokenId], bytes], context: Sequence[TokenId] = ()) -> None:
        """`context`: the last tokens of the prompt, enough for a character."""
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in context:
            self.push(token)

    def push(self, token: TokenId) -> str:
        return self._decoder.decode(self._token_bytes(token))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """A vocabulary that is not byte-level, as far as its text goes."""

    decode: Callable[[Sequence[TokenId]], str]
    """Text of ids, as the tokenizer has it."""
    special: Container[TokenId] = frozenset()
    """Tokens without text."""
    raw: Mapping[TokenId, int] = field(default_factory=dict)
    """Those that are one raw byte, as vocabularies with byte fallback have for all that they have no token for."""
    anchor: Sequence[TokenId] = ()
    """A plain text: what is decoded behind it is not the first."""

    def token_bytes(self, token: TokenId, *, first: bool) -> bytes:
        """What a token adds to a text, or to none if it is its `first`."""
        if token in self.raw:
            return bytes([self.raw[token]])
        before = () if first else self.anchor
        return self.decode([*before, token])[len(self.decode(before)) :].encode()


class WindowDetokenizer:
    """For any vocabulary; decodes the ids since the last but one certain place.

    The window starts one piece early, or with the anchor, because decoders treat a sequence's first token specially (a
    leading space is stripped, for instance). Raw bytes never enter it.
    """

    def __init__(self, pieces: Pieces, context: Sequence[TokenId] = ()) -> None:
        """`context`: the last tokens of the prompt that have text; none, if no token of it has."""
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._window: list[TokenId] = []
        self._given_tokens = 0
        self._given = ""
        for token in context:
            self.push(token)

    @property
    def at_start(self) -> bool:
        return not self._window

    def push(self, token: TokenId) -> str:
        if token in self._pieces.special:
            return ""
        raw = self._pieces.raw.get(token)
        if raw is not None:
            return self._take_held() + self._utf8.decode(bytes([raw]))
        broken = self._utf8.decode(b"", final=True)
        self._window.append(token)
        text = self._pieces.decode(self._window)
        if text.endswith(REPLACEMENT) and not self._pieces.raw:
            return broken  # bytes of a character are inside of tokens, and more of them will come
        piece = text[len(self._given) :]
        self._begin(self._window[self._given_tokens :])
        return broken + piece

    def flush(self) -> str:
        return self._take_held() + self._utf8.decode(b"", final=True)

    def _take_held(self) -> str:
        """The text of the window that was not given yet; the next token is not the first, and touches none of it."""
        text = self._pieces.decode(self._window)[len(self._given) :] if len(self._window) > self._given_tokens else ""
        self._begin(self._pieces.anchor)
        return text

    def _begin(self, window: Sequence[TokenId]) -> None:
        """Go on behind `window`, whose text was given."""
        self._window = list(window)
        self._given_tokens = len(window)
        self._given = self._pieces.decode(window)


def byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level vocabularies: GPT-2's `bytes_to_unicode`, reversed."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}

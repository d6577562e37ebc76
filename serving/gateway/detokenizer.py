"""Token ids to text, piece by piece, such that the pieces joined are the text of all the ids decoded at once.

Two ways. Byte-level vocabularies (GPT-2's family: Llama 3, Qwen, SmolLM) are a plain table from id to bytes, and UTF-8
can be decoded incrementally. For all others the tokenizer decodes a short window of ids again and again, since what an
id looks like may depend on its neighbours. Both hold back bytes that are not yet a whole character.
"""

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

from serving.messages import TokenId

REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """The text of one sequence."""

    def push(self, token: TokenId) -> str:
        """Text that is certain now that `token` came; often empty, when it ends in the middle of a character."""
        ...

    def flush(self) -> str:
        """What is left at the end of the sequence."""
        ...


class ByteDetokenizer:
    """For byte-level vocabularies; costs a table look-up per token."""

    def __init__(self, token_bytes: Callable[[TokenId], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: TokenId) -> str:
        return self._decoder.decode(self._token_bytes(token))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For any tokenizer; decodes the ids since the last but one certain place.

    The window starts one piece early because decoders treat a sequence's first token specially (a leading space is
    stripped, for instance). Bytes in a row are certain only when the row ends: a decoder with byte fallback shows
    the whole row as replacement characters when any of it is not UTF-8.
    """

    def __init__(self, decode: Callable[[Sequence[TokenId]], str], is_byte: Callable[[TokenId], bool]) -> None:
        self._decode = decode
        self._is_byte = is_byte
        self._window: list[TokenId] = []
        self._given_tokens = 0
        self._given = ""

    def push(self, token: TokenId) -> str:
        self._window.append(token)
        if self._is_byte(token):
            return ""
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT):
            return ""
        piece = text[len(self._given) :]
        self._window = self._window[self._given_tokens :]
        self._given_tokens = len(self._window)
        self._given = self._decode(self._window)
        return piece

    def flush(self) -> str:
        return self._decode(self._window)[len(self._given) :]


def byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level vocabularies: GPT-2's `bytes_to_unicode`, reversed."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}

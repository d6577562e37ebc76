"""The model's tokenizer: text and chats to ids, ids to text. The only module here that imports transformers.

That import takes seconds and brings torch along, so it happens when a tokenizer is loaded, not before.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.config import ModelConfig
from serving.errors import InvalidRequest, ModelError
from serving.gateway.chat_template import render_chat
from serving.gateway.detokenizer import ByteDetokenizer, Detokenizer, Pieces, WindowDetokenizer, byte_level_alphabet
from serving.messages import TokenId
from serving.model_files import read_json, shown

_TRIAL = "Hello"
"""What every tokenizer must be able to encode, or it is of no use."""
_CHARS_PER_TOKEN = 32
"""No prompt of more characters than that per token of `max_model_len` is tokenized at all."""
_OFF_LOOP_CHARS = 4096
"""Longer texts are encoded in a thread, about 1 ms of work; shorter ones cost less than going there."""
_CONTEXT_TOKENS = 5
"""Of the prompt's end, for the answer's first piece: a character may be four tokens."""
_CONTEXT_LOOKED_AT = 256
"""Tokens of the prompt's end among which those are looked for; special ones have no text."""
_RAW_NAMES = [f"<0x{byte:02X}>" for byte in range(256)]
"""Of the tokens that are one raw byte, where the vocabulary has them."""
_PIECE_CHARS = 128 * 1024
"""Longer texts are counted in pieces before they are encoded."""
_TOKENS_AT_A_CUT = 16
"""As many more as a text may seem to have because it was cut in two."""
_CHARS_PER_MESSAGE = 64
"""As much text as a template's work on a message, about 10 us, stands for."""


class Tokenizer:
    """Safe for use from one event loop; long texts are encoded off it."""

    vocab_size: int
    """Ids that the model knows: 0 <= id < vocab_size."""

    def __init__(self, config: ModelConfig) -> None:
        """Read the tokenizer from the model's folder. Raises `ModelError` when there is none that can be used."""
        self._max_chars = _CHARS_PER_TOKEN * config.max_model_len
        self._max_model_len = config.max_model_len
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")
        self._alphabet = byte_level_alphabet()
        self._bytes: dict[tuple[TokenId, bool], bytes] = {}
        with _usable(config.path):
            self._hf = _load(config)
            self.vocab_size = _vocab_size(config.path) or len(self._hf)
            added = self._hf.added_tokens_decoder.items()
            self._special = {*self._hf.all_special_ids, *(token for token, entry in added if entry.special)}
            self._pieces = None if _is_byte_level(self._hf) else self._read_pieces()
            self.decode(self._encode(_TRIAL, special=True))

    @property
    def end_token(self) -> TokenId | None:
        """The tokenizer's own, which ends an answer whatever the configuration names."""
        token: TokenId | None = self._hf.eos_token_id
        return token if token is not None and token < self.vocab_size else None

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was made to hold conversations."""
        return bool(self._hf.chat_template)

    async def encode(self, text: str, *, param: str, special: bool = True) -> list[TokenId]:
        """Ids of a prompt; `special` adds the beginning-of-sequence token where the model has one.

        Raises `InvalidRequest`, naming `param`, when the text is certainly longer than the model's context.
        """
        self._check_length(len(text), param)
        if len(text) <= _OFF_LOOP_CHARS:
            return self._encode(text, special)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._encode_long, text, special, param)

    def _encode_long(self, text: str, special: bool, param: str) -> list[TokenId]:
        """Piece by piece first, if only to count: ids by the million are made, and let go, while no thread goes on."""
        seen = 0
        for place, start in enumerate(range(0, len(text), _PIECE_CHARS) if len(text) > _PIECE_CHARS else (), 1):
            seen += len(self._encode(text[start : start + _PIECE_CHARS], special=False))
            if seen > self._max_model_len + place * _TOKENS_AT_A_CUT:
                message = f"the prompt has more than the {self._max_model_len} tokens that this model's context holds"
                raise InvalidRequest(f"{param}: {message}", param=param, code="context_length_exceeded")
        return self._encode(text, special)

    def _check_length(self, chars: int, param: str) -> None:
        if chars > self._max_chars:
            raise InvalidRequest(
                f"{param}: {chars} characters cannot fit the {self._max_model_len} tokens of this model's context",
                param=param,
                code="context_length_exceeded",
            )

    def _encode(self, text: str, special: bool) -> list[TokenId]:
        ids: list[TokenId] = self._hf.encode(text, add_special_tokens=special)
        return ids

    async def encode_chat(self, messages: Sequence[Mapping[str, str]], *, param: str) -> list[TokenId]:
        """Ids of a chat in the model's own template, up to where the assistant's answer begins.

        Raises `InvalidRequest`, naming `param`, when the template refuses it, in the template's words, and before
        anything is rendered when what the messages say is certainly longer than the model's context.
        """
        said = sum(len(message["content"]) for message in messages)
        self._check_length(said, param)
        if said + _CHARS_PER_MESSAGE * len(messages) <= _OFF_LOOP_CHARS:
            text = render_chat(self._hf, messages, param)
        else:
            loop = asyncio.get_running_loop()
            text = await loop.run_in_executor(self._thread, render_chat, self._hf, messages, param)
        return await self.encode(text, param=param, special=False)

    def decode(self, ids: Sequence[TokenId]) -> str:
        """Text of all ids but the special ones. Spaces stay as they are, since a stream could not take them back."""
        text: str = self._hf.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def detokenizer(self, prompt: Sequence[TokenId] = ()) -> Detokenizer:
        """A fresh one for one sequence; its pieces joined are what the sequence adds to the text of its prompt."""
        textual = [token for token in prompt[-_CONTEXT_LOOKED_AT:] if token not in self._special]
        context = textual[-_CONTEXT_TOKENS:]
        return WindowDetokenizer(self._pieces, context) if self._pieces else ByteDetokenizer(self.token_bytes, context)

    def token_bytes(self, token: TokenId, *, first: bool = False) -> bytes:
        """The bytes that one token adds to a text, or to none if it is its `first`; none for a special token."""
        known = self._bytes.get((token, first))
        if known is None:
            known = self._bytes[token, first] = self._compute_bytes(token, first)
        return known

    def _compute_bytes(self, token: TokenId, first: bool) -> bytes:
        name = self._hf.convert_ids_to_tokens(token)
        if name is None or token in self._special:
            return b""
        if self._pieces is not None:
            return self._pieces.token_bytes(token, first=first)
        if all(char in self._alphabet for char in name):
            return bytes(self._alphabet[char] for char in name)
        return bytes(name.encode())

    def special_name(self, token: TokenId) -> str | None:
        """How a special token, which has no text, is called; None for any other."""
        return str(self._hf.convert_ids_to_tokens(token)) if token in self._special else None

    def _read_pieces(self) -> Pieces:
        """What there is to know of a vocabulary that is not byte-level."""
        named = {self._hf.convert_tokens_to_ids(name): (name, byte) for byte, name in enumerate(_RAW_NAMES)}
        raw = {
            token: byte
            for token, (name, byte) in named.items()
            if token is not None and self._hf.convert_ids_to_tokens(token) == name and self.decode([token]) != name
        }
        anchor = self._encode("a", special=False)[-1:]
        return Pieces(decode=self.decode, special=self._special, raw=raw, anchor=anchor)


def _load(config: ModelConfig) -> Any:
    from transformers import AutoTokenizer

    if not config.path.is_dir():
        raise ModelError(f"model.path {config.path}: no such folder")
    return AutoTokenizer.from_pretrained(config.path, local_files_only=True, trust_remote_code=config.trust_remote_code)


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Whatever the library raises of a folder's files, as one sentence: they may say anything."""
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:
        # What its Rust code did not expect is no `Exception`.
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        said = f"{type(error).__name__}: {error}"
        raise ModelError(f"model.path {folder}: no usable tokenizer: {shown(said)}") from error


def _vocab_size(folder: Path) -> int | None:
    """Of the model's own configuration, which may be padded beyond the tokenizer's."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    tree = read_json(file)
    nested = tree.get("text_config")
    size = tree.get("vocab_size") or (nested.get("vocab_size") if isinstance(nested, dict) else None)
    if size is not None and not (type(size) is int and 0 < size < 2**31):
        raise ModelError(f"{file}: the vocab_size is {shown(size)}")
    return size


def _is_byte_level(tokenizer: Any) -> bool:
    """Does the tokenizer decode by GPT-2's byte alphabet alone, with nothing before or after?"""
    if not tokenizer.is_fast:
        return False
    decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
    parts = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    return [part.get("type") for part in parts] == ["ByteLevel"]

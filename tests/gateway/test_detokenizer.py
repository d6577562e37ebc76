"""Pieces of text joined are the text of all ids at once."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models

from serving.gateway.detokenizer import Detokenizer, WindowDetokenizer, byte_level_alphabet
from serving.gateway.tokenizer import Tokenizer

TEXTS = ["Hello, world", "naïve café", "日本語のテキスト", "👩‍👩‍👧 family", "a\r\n\tb  c", "Ω≈ç√∫µ≤≥÷", "\u0000\ufffd"]


def pieces(detokenizer: Detokenizer, ids: Sequence[int]) -> list[str]:
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


def any_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Mostly fragments of characters, so that most sequences are no valid UTF-8."""
    raw = [token for token in range(1000) if any(byte > 127 for byte in tokenizer.token_bytes(token))]
    return st.lists(st.one_of(st.sampled_from(raw), st.integers(0, tokenizer.vocab_size - 1)), max_size=40)


@pytest.mark.parametrize("text", TEXTS)
async def test_a_text_survives_both_ways(tokenizer: Tokenizer, text: str) -> None:
    ids = await tokenizer.encode(text, param="prompt")
    assert "".join(pieces(tokenizer.detokenizer(), ids)) == text
    assert "".join(pieces(WindowDetokenizer(tokenizer.decode, lambda _: False), ids)) == text


@given(data=st.data())
def test_any_ids_give_the_text_of_decoding_them_at_once(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(any_ids(tokenizer))
    assert "".join(pieces(tokenizer.detokenizer(), ids)) == tokenizer.decode(ids)
    assert "".join(pieces(WindowDetokenizer(tokenizer.decode, lambda _: False), ids)) == tokenizer.decode(ids)


def test_half_a_character_is_held_back(tokenizer: Tokenizer) -> None:
    euro = [next(t for t in range(1000) if tokenizer.token_bytes(t) == bytes([byte])) for byte in "€".encode()]
    assert pieces(tokenizer.detokenizer(), euro) == ["", "", "€", ""]
    assert pieces(tokenizer.detokenizer(), euro[:2]) == ["", "", "\ufffd"]


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer.detokenizer(), [0, 1, 2, 5]) == ["", "", "", "", ""]


def test_the_alphabet_names_each_byte_once() -> None:
    assert sorted(byte_level_alphabet().values()) == list(range(256))


BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
FALLBACK = RawTokenizer(models.BPE(vocab=BYTES | {"▁a": 256, "b": 257, "▁": 258}, merges=[]))
FALLBACK.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


@given(st.lists(st.one_of(st.sampled_from([256, 257, 258]), st.sampled_from(list("é日👧".encode()))), max_size=30))
def test_a_vocabulary_with_byte_fallback_streams_the_same_text(ids: list[int]) -> None:
    window = WindowDetokenizer(lambda some: FALLBACK.decode(list(some)), lambda token: token < 256)
    assert "".join(pieces(window, ids)) == FALLBACK.decode(ids)

"""Pieces of text joined are the text of all ids at once."""

import codecs
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.detokenizer import Detokenizer, Pieces, WindowDetokenizer, byte_level_alphabet
from serving.gateway.tokenizer import Tokenizer
from tests.gateway.conftest import tiny_tokenizer
from tests.gateway.tiny_tokenizers import KINDS

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
    assert "".join(pieces(WindowDetokenizer(Pieces(decode=tokenizer.decode)), ids)) == text


@given(data=st.data())
def test_any_ids_give_the_text_of_decoding_them_at_once(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(any_ids(tokenizer))
    assert "".join(pieces(tokenizer.detokenizer(), ids)) == tokenizer.decode(ids)
    assert "".join(pieces(WindowDetokenizer(Pieces(decode=tokenizer.decode)), ids)) == tokenizer.decode(ids)


def test_half_a_character_is_held_back(tokenizer: Tokenizer) -> None:
    euro = [next(t for t in range(1000) if tokenizer.token_bytes(t) == bytes([byte])) for byte in "€".encode()]
    assert pieces(tokenizer.detokenizer(), euro) == ["", "", "€", ""]
    assert pieces(tokenizer.detokenizer(), euro[:2]) == ["", "", "\ufffd"]


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer.detokenizer(), [0, 1, 2, 5]) == ["", "", "", "", ""]


def test_the_alphabet_names_each_byte_once() -> None:
    assert sorted(byte_level_alphabet().values()) == list(range(256))


CONTINUED = ["Hello world, the tree", "Hello é日本語 the trees", "a  b\n\tc", " the 👩‍👩‍👧 house", "éé the"]


@pytest.mark.parametrize("text", CONTINUED)
def test_an_answer_is_what_it_adds_to_its_prompt_wherever_that_ends(tiny: Tokenizer, text: str) -> None:
    ids = tiny._encode(text, special=False)
    prompts = {cut: tiny.decode(ids[:cut]) for cut in range(1, len(ids))}
    for cut, prompt in prompts.items():
        if "\ufffd" not in prompt:
            got = "".join(pieces(tiny.detokenizer(ids[:cut]), ids[cut:]))
            assert got == tiny.decode(ids).removeprefix(prompt)
            assert got.encode() == b"".join(tiny.token_bytes(token) for token in ids[cut:])


@pytest.mark.parametrize("kind", ["llama", "unigram"])
def test_an_answer_that_nothing_precedes_has_no_space_before_it(kind: str) -> None:
    tiny = tiny_tokenizer(kind)
    ids = tiny._encode("Hello world", special=False)
    for prompt in ([], [tiny._hf.eos_token_id]):
        detokenizer = tiny.detokenizer(prompt)
        assert detokenizer.at_start
        assert "".join(pieces(detokenizer, ids)) == tiny.decode([*prompt, *ids]) == "Hello world"
        assert not detokenizer.at_start
    shown = [tiny.token_bytes(token, first=place == 0) for place, token in enumerate(ids)]
    assert b"".join(shown) == b"Hello world"


def test_special_tokens_between_prompt_and_answer_take_no_space_away(tiny: Tokenizer) -> None:
    ids, end = tiny._encode("Hello world", special=False), tiny._hf.convert_tokens_to_ids("<|end|>")
    cut = next(at for at in range(len(ids)) if tiny.decode(ids[:at]) == "Hello")
    for between in ([end], [end] * 200):
        assert "".join(pieces(tiny.detokenizer([*ids[:cut], *between]), ids[cut:])) == " world"


def test_a_character_that_the_prompt_has_begun_is_the_answers(tiny: Tokenizer) -> None:
    ids = [token for token in tiny._encode("日", special=False) if max(tiny.token_bytes(token)) > 127]
    assert len(ids) == 3
    before = tiny._encode("the", special=False)
    assert "".join(pieces(tiny.detokenizer([*before, *ids[:1]]), ids[1:])) == "日"
    assert "".join(pieces(tiny.detokenizer([*before, *ids]), ids)) == "日"


def test_raw_bytes_are_given_as_soon_as_they_are_a_character(tiny: Tokenizer) -> None:
    """Text in a script that the vocabulary does not know is one long row of raw bytes, which must stream too."""
    ids = [token for token in tiny._encode("日é日", special=False) if max(tiny.token_bytes(token)) > 127]
    assert pieces(tiny.detokenizer(), ids) == ["", "", "日", "", "é", "", "", "日", ""]


def test_bytes_that_are_no_character_spoil_none_beside_them(tiny: Tokenizer) -> None:
    ids = [token for token in tiny._encode("日é", special=False) if max(tiny.token_bytes(token)) > 127]
    got = "".join(pieces(tiny.detokenizer(), [*ids[:4], *ids, *ids[:2]]))
    assert got == "日\ufffd日é\ufffd"


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_pieces_bytes_and_decoding_at_once_agree_on_any_ids(kind: str, data: st.DataObject) -> None:
    tiny = tiny_tokenizer(kind)
    ids = data.draw(st.lists(st.integers(0, tiny.vocab_size - 1), max_size=30))
    prompt = data.draw(st.lists(st.integers(0, tiny.vocab_size - 1), max_size=8))
    detokenizer = tiny.detokenizer(prompt)
    whole = b"".join(tiny.token_bytes(token) for token in prompt)
    shown, text = [], ""
    for token in ids:
        shown.append(tiny.token_bytes(token, first=detokenizer.at_start))
        text += detokenizer.push(token)
    text += detokenizer.flush()
    begun = codecs.getincrementaldecoder("utf-8")("replace")
    begun.decode(whole)
    assert text == begun.decode(b"".join(shown), final=True)
    before, everything = tiny.decode(prompt), tiny.decode([*prompt, *ids])
    if "\ufffd" not in before + everything:
        assert text == everything[len(before) :]

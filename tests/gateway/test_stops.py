"""Stop strings over pieces, against the plain search in the whole text."""

from hypothesis import example, given
from hypothesis import strategies as st

from serving.gateway.stops import StopFinder

LETTERS = st.text("ab", max_size=6)


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    finder, out = StopFinder(stops), []
    for piece in pieces:
        text, found = finder.push(piece)
        out.append(text)
        if found:
            return out, True
    return [*out, finder.flush()], False


def first_stop(stops: list[str], text: str) -> int | None:
    return min((at for at in map(text.find, stops) if at >= 0), default=None)


@given(st.lists(LETTERS.filter(bool), min_size=1, max_size=3), st.lists(LETTERS, max_size=12))
@example(["aab"], ["a", "a", "a", "b"])
@example(["abab", "b"], ["a", "bab"])
def test_the_text_is_cut_before_the_first_stop_string_and_never_shows_any_of_it(
    stops: list[str], pieces: list[str]
) -> None:
    out, found = run(stops, pieces)
    joined = "".join(out)
    assert not any(stop in joined for stop in stops)
    if found:
        # Pieces are searched as they come: a stop string that is complete earlier ends the text first.
        ends = [len("".join(pieces[:count])) for count in range(1, len(pieces) + 1)]
        seen = next("".join(pieces)[:end] for end in ends if first_stop(stops, "".join(pieces)[:end]) is not None)
        assert len(joined) == first_stop(stops, seen)
    else:
        assert joined == "".join(pieces)


def test_what_may_become_a_stop_string_is_held_and_let_go_when_it_does_not() -> None:
    finder = StopFinder(["\nUser:"])
    assert finder.push("Hi\nUs") == ("Hi", False)
    assert finder.push("ual") == ("\nUsual", False)
    assert finder.push("\n\nUser: x") == ("\n", True)


def test_a_text_without_stop_strings_passes_at_once() -> None:
    assert StopFinder([]).push("abc") == ("abc", False)

import itertools

import pytest

from loadtests.prompts import MISTAKES, TURNS, WRITERS, Ask, Author


def first(kind: str, count: int = 20, seed: int = 7, number: int = 3) -> list[Ask]:
    author = Author(seed, kind, number, "demo")
    return list(itertools.chain.from_iterable(WRITERS[kind](author) for _ in range(count)))


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_seed_and_user_send_the_same_requests(kind: str) -> None:
    assert first(kind) == first(kind)


@pytest.mark.parametrize("kind", WRITERS)
def test_another_seed_or_user_sends_others(kind: str) -> None:
    assert first(kind) != first(kind, seed=8)
    assert first(kind) != first(kind, number=4)


def test_pauses_do_not_change_what_is_sent() -> None:
    author = Author(7, "stream", 3, "demo")
    asks = []
    for _ in range(20):
        author.pauses.random()
        asks += WRITERS["stream"](author)
    assert asks == first("stream")


def test_each_turn_of_a_chat_begins_with_all_of_the_turn_before() -> None:
    turns = [ask.body["messages"] for ask in first("chat", TURNS + 1)]
    for before, after in itertools.pairwise(turns[:-1]):
        assert after[: len(before)] == before
        assert len(after) == len(before) + 2
    assert len(turns[-1]) == 1


def test_mistakes_are_met_all() -> None:
    assert {ask.path + str(ask.status) for ask in first("wrong", 200)} == {f"{path}{st}" for path, _, st in MISTAKES}

"""Mapped memory reads as zeros, takes pages only when written, and asks for huge ones where told to."""

import platform
import re

import psutil
import pytest
import torch

from serving.engine.host_memory import mapped, populate, side_by_side
from tests.engine.smaps import flags_of, needs_huge_pages

SIZE = 256 << 20
RELEASE = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])


@pytest.mark.parametrize("huge", [False, True])
def test_a_page_is_only_taken_when_it_is_written(huge: bool) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    room = mapped(SIZE, huge=huge)
    assert process.memory_info().rss - before < SIZE // 8
    room[-1] = 1
    assert process.memory_info().rss - before < SIZE // 8
    assert (room.numel(), int(room[0]), int(room[-1])) == (SIZE, 0, 1)


@pytest.mark.skipif(RELEASE < (5, 14), reason="Linux before 5.14 leaves pages to the writes")
def test_pages_are_taken_and_what_was_written_stays() -> None:
    process = psutil.Process()
    room = mapped(SIZE)
    room[SIZE // 2] = 7
    before = process.memory_info().rss
    populate(room[100:])
    assert process.memory_info().rss - before > SIZE - SIZE // 8
    assert (int(room[SIZE // 2]), int(room.sum())) == (7, 7)


def test_nothing_can_be_mapped() -> None:
    assert mapped(0).numel() == 0


@needs_huge_pages
def test_huge_pages_are_asked_for_where_told_to() -> None:
    small, huge = mapped(SIZE), mapped(SIZE, huge=True)
    assert "hg" in flags_of(huge)
    assert "hg" not in flags_of(small)


def test_memory_lives_as_long_as_a_view_of_it() -> None:
    view = mapped(1 << 20)[8:16].view(torch.float32)
    view.fill_(2.5)
    assert view.tolist() == [2.5, 2.5]


def test_tensors_lie_side_by_side_at_lines_of_their_own() -> None:
    shapes = {"a": (3, 5), "b": (0, 4), "c": (), "d": (64,)}
    rooms = side_by_side(shapes, torch.bfloat16)
    assert {name: tuple(room.shape) for name, room in rooms.items()} == shapes
    for number, room in enumerate(rooms.values()):
        assert room.data_ptr() % 64 == 0
        room.fill_(number)
    for number, room in enumerate(rooms.values()):
        assert bool((room == number).all())

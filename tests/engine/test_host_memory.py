"""Mapped memory reads as zeros, takes pages only when written, and asks for huge ones where told to."""

from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from serving.engine.host_memory import mapped

SIZE = 256 << 20


def flags_of(tensor: Tensor) -> list[str]:
    """The kernel's flags of the mapping that `tensor` lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first:
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= tensor.data_ptr() < end
        elif inside and first == "VmFlags:":
            return rest.split()
    raise AssertionError("no such mapping")


@pytest.mark.parametrize("huge", [False, True])
def test_a_page_is_only_taken_when_it_is_written(huge: bool) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    room = mapped(SIZE, huge=huge)
    assert process.memory_info().rss - before < SIZE // 8
    room[-1] = 1
    assert process.memory_info().rss - before < SIZE // 8
    assert (room.numel(), int(room[0]), int(room[-1])) == (SIZE, 0, 1)


def test_nothing_can_be_mapped() -> None:
    assert mapped(0).numel() == 0


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="needs a kernel with transparent huge pages"
)
def test_huge_pages_are_asked_for_where_told_to() -> None:
    small, huge = mapped(SIZE), mapped(SIZE, huge=True)
    assert "hg" in flags_of(huge)
    assert "hg" not in flags_of(small)


def test_memory_lives_as_long_as_a_view_of_it() -> None:
    view = mapped(1 << 20)[8:16].view(torch.float32)
    view.fill_(2.5)
    assert view.tolist() == [2.5, 2.5]

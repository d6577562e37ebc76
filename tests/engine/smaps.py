"""What the kernel knows of a tensor's memory."""

from pathlib import Path

import pytest
from torch import Tensor

needs_huge_pages = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="needs a kernel with transparent huge pages"
)


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

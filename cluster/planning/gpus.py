"""GPUs by name, for planning without a cluster. Memory is what the driver reports, less than the name says."""

import re
from dataclasses import dataclass

from cluster.errors import SpecError

_NODE = re.compile(r"(\d+)\s*[x*]\s*(\d+(?:\.\d+)?)(?:\s*(?:GiB|GB|G))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NodeKind:
    """A node as planning sees it."""

    gpu: str
    gpus: int
    gpu_memory_gib: float
    """Memory of one GPU."""

    @property
    def text(self) -> str:
        """Such as "8 x H100 (79.6 GiB)"."""
        return f"{self.gpus} x {self.gpu} ({self.gpu_memory_gib:g} GiB)"


GPUS = {
    "A10": NodeKind("A10", 4, 22.5),
    "A100-40": NodeKind("A100-40", 8, 40.0),
    "A100-80": NodeKind("A100-80", 8, 80.0),
    "B200": NodeKind("B200", 8, 179.1),
    "H100": NodeKind("H100", 8, 79.6),
    "H200": NodeKind("H200", 8, 140.4),
    "L4": NodeKind("L4", 4, 22.5),
    "L40S": NodeKind("L40S", 4, 45.0),
    "T4": NodeKind("T4", 4, 15.0),
    "V100-16": NodeKind("V100-16", 8, 16.0),
    "V100-32": NodeKind("V100-32", 8, 32.0),
}
"""Name -> the usual node with it. Makers' data sheets; memory as nvidia-smi shows it."""


def find_gpu(name: str, gpus: int | None = None) -> NodeKind:
    """The usual node with the GPU `name`, or one with `gpus` of them. Raises `SpecError` for a name not known."""
    key = name.upper().removeprefix("NVIDIA-").removesuffix("GB")
    kind = GPUS.get(key)
    if kind is None:
        like = sorted(known for known in GPUS if known.startswith(key + "-"))
        known = ", ".join(like or sorted(GPUS))
        raise SpecError(f"GPU {name}: known are {known}; describe any other as --node 8x80 (GPUs x GiB)")
    return kind if gpus is None else NodeKind(kind.gpu, gpus, kind.gpu_memory_gib)


def parse_node(text: str) -> NodeKind:
    """A node described as "8x80": GPUs x GiB of each. Raises `SpecError`."""
    found = _NODE.fullmatch(text.strip())
    if found is None or not int(found[1]) or not float(found[2]):
        raise SpecError(f"--node {text}: expected GPUs x GiB, such as 8x80")
    return NodeKind("GPU", int(found[1]), float(found[2]))

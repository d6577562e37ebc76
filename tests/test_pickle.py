"""Nothing of ours is unpickled: not between ranks, whose gloo asks nobody who they are, nor out of any file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(file for package in ("serving", "cluster") for file in (ROOT / package).rglob("*.py"))
PICKLING = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "multiprocessing"}
"""Modules that unpickle what they read. Ray does too, between its own processes, which ask for a token."""
OF_TORCH = {"load", "save"}


def unpickles(source: str) -> Iterator[str]:
    """What in a module's text would pickle or unpickle."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.partition(".")[0] in PICKLING)
            case ast.ImportFrom(module=str(module), names=names):
                if module.partition(".")[0] in PICKLING:
                    yield module
                yield from (name.name for name in names if _of_distributed(name.name))
            case ast.Attribute(value=ast.Name(id="torch"), attr=attr) if attr in OF_TORCH:
                yield f"torch.{attr}"
            case ast.Attribute(attr=attr) if _of_distributed(attr):
                yield attr
            case ast.keyword(arg="allow_pickle"):
                yield "allow_pickle"


def _of_distributed(name: str) -> bool:
    """As all_gather_object, broadcast_object_list, send_object_list are called."""
    return name.endswith(("_object", "_object_list"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_module_unpickles(file: Path) -> None:
    assert not list(unpickles(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from multiprocessing.connection import Client",
        "dist.all_gather_object(ends, told)",
        "from torch.distributed import broadcast_object_list",
        "torch.load(file)",
        "numpy.load(file, allow_pickle=True)",
    ],
)
def test_what_unpickles_is_seen(line: str) -> None:
    assert list(unpickles(line))

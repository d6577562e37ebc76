"""Comments, messages and documents use the field's words."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "loadtests" / "results"
SEARCHED = (
    "serving",
    "cluster",
    "loadtests",
    "configs",
    "tests",
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "Makefile",
)
INSTEAD = {
    "all else": "everything else",
    "anew": "again",
    "behind the norm": "after the norm",
    "bury": "discard",
    "farewell": "stop plan",
    "mend": "fix",
    "mended": "fixed",
    "mends": "fixes",
    "number format": "dtype",
    "request is silent": "request sets none",
    "to the bit": "bit-identical",
    "to the byte": "byte for byte",
    "to the letter": "identical text",
    "water level": "water-filling",
    "whoever": "anyone who, the operator, the caller",
    "with a sentence": "with an error message",
}
"""A phrase that has no other meaning here -> what to write."""


@cache
def lines() -> list[tuple[str, str]]:
    """(place, text) of every line of text in the repository, without this file and what is made of data."""
    found = []
    for file in filter(_is_text, (file for name in SEARCHED for file in _files(ROOT / name))):
        text = file.read_text(encoding="utf-8")
        found += [(f"{file.relative_to(ROOT)}:{number}", line) for number, line in enumerate(text.splitlines(), 1)]
    return found


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*")) if path.is_dir() else [path]


def _is_text(file: Path) -> bool:
    made = file.suffix in {".png", ".svg", ".json", ".pyc"} or file.is_relative_to(RESULTS)
    return file.is_file() and not made and file != Path(__file__)


@pytest.mark.parametrize("phrase", INSTEAD)
def test_a_private_phrase_does_not_occur(phrase: str) -> None:
    pattern = re.compile(rf"\b{phrase.replace(' ', '[ -]')}\b", re.IGNORECASE)
    places = [place for place, line in lines() if pattern.search(line)]
    assert not places, f'"{phrase}": write "{INSTEAD[phrase]}"'


def test_the_search_finds_files_of_every_kind() -> None:
    suffixes = {Path(place.partition(":")[0]).suffix for place, _ in lines()}
    assert {".py", ".cpp", ".h", ".js", ".html", ".yaml", ".md"} <= suffixes

"""Label and field selectors, as list and watch take them in a query."""

import re
from collections.abc import Callable
from typing import Any

from tests.kube.errors import bad_request

Test = Callable[[dict[str, Any]], bool]
SET_TERM = re.compile(r"^(?P<key>\S+)\s+(?P<op>in|notin)\s+\((?P<values>[^)]*)\)$")


def selects(obj: dict[str, Any], labels: str, fields: str) -> bool:
    """Whether an object matches both selectors; an empty one matches all."""
    have = obj["metadata"].get("labels") or {}
    return all(_label_term(term, have) for term in split_terms(labels)) and all(
        _field_term(term, obj) for term in split_terms(fields)
    )


def split_terms(selector: str) -> list[str]:
    """Terms are parted by commas, except inside the brackets of `in (a, b)`."""
    return [term.strip() for term in re.split(r",(?![^(]*\))", selector) if term.strip()]


def _label_term(term: str, labels: dict[str, str]) -> bool:
    matched = SET_TERM.match(term)
    if matched:
        values = [value.strip() for value in matched["values"].split(",")]
        return (labels.get(matched["key"]) in values) == (matched["op"] == "in")
    if "!=" in term:
        key, value = term.split("!=", 1)
        return labels.get(key.strip()) != value.strip()
    if "=" in term:
        key, value = re.split("==?", term, maxsplit=1)
        return labels.get(key.strip()) == value.strip()
    if term.startswith("!"):
        return term[1:].strip() not in labels
    return term in labels


def _field_term(term: str, obj: dict[str, Any]) -> bool:
    matched = re.match(r"^([\w.]+)(!=|==|=)(.*)$", term)
    if matched is None:
        raise bad_request(f"invalid field selector {term!r}")
    path, sign, wanted = matched.groups()
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return (str(value or "") == wanted) == (sign != "!=")

"""Field sets: which fields an object has, named as `managedFields` names them.

A path is a tuple of elements: `f:name` for a field, `k:{"name":"a"}` for an item of a keyed list, `v:"x"` for a member
of a set. A path in a set is a leaf, or an item of a keyed list, whose existence is owned besides its fields.
"""

import json
from typing import Any

from tests.kube.schema import Schema, child_of

Path = tuple[str, ...]

IDENTITY = frozenset(
    {
        ("f:apiVersion",),
        ("f:kind",),
        *(
            ("f:metadata", f"f:{name}")
            for name in (
                "name",
                "namespace",
                "uid",
                "resourceVersion",
                "generation",
                "creationTimestamp",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "managedFields",
                "selfLink",
                "generateName",
            )
        ),
    }
)
"""Fields that nobody owns."""

BUILT_IN_KEYS = {
    "containers": ["name"],
    "initContainers": ["name"],
    "volumes": ["name"],
    "env": ["name"],
    "imagePullSecrets": ["name"],
    "secrets": ["name"],
    "conditions": ["type"],
    "volumeMounts": ["mountPath"],
    "ownerReferences": ["uid"],
}
"""Keyed lists of Kubernetes' own kinds, by field name."""

Keys = list[str] | None


def list_keys(name: str, value: list[Any], schema: Schema | None) -> Keys:
    """The keys of a keyed list; [] for a set; None for a list that is owned as a whole."""
    if schema:
        kind = schema.get("x-kubernetes-list-type")
        return list(schema["x-kubernetes-list-map-keys"]) if kind == "map" else [] if kind == "set" else None
    if name == "ports" and value and isinstance(value[0], dict):
        return ["containerPort" if "containerPort" in value[0] else "port", "protocol"]
    return [] if name == "finalizers" else BUILT_IN_KEYS.get(name)


def item_element(item: Any, keys: list[str]) -> str:
    """The path element of one list item."""
    if not keys:
        return f"v:{json.dumps(item)}"
    named = {key: item.get(key, "TCP" if key == "protocol" else None) for key in sorted(keys)}
    return f"k:{json.dumps(named, separators=(',', ':'))}"


def child_schema(schema: Schema | None, name: str, path: Path) -> Schema | None:
    """The schema below one field; None below Kubernetes' own types, which `metadata` always is."""
    if schema is None or (path == () and name == "metadata"):
        return None
    return child_of(schema, name) or {}


def field_set(obj: dict[str, Any], schema: Schema | None) -> set[Path]:
    """The paths of an object, without those nobody owns."""
    return _paths(obj, schema, (), "") - IDENTITY


def _paths(value: Any, schema: Schema | None, path: Path, name: str) -> set[Path]:
    if isinstance(value, dict) and value and not (schema and schema.get("x-kubernetes-map-type") == "atomic"):
        found: set[Path] = set()
        for key, item in value.items():
            found |= _paths(item, child_schema(schema, key, path), (*path, f"f:{key}"), key)
        return found
    keys = list_keys(name, value, schema) if isinstance(value, list) else None
    if keys is None or not value:
        return {path}
    return _item_paths(value, keys, schema, path)


def _item_paths(value: list[Any], keys: list[str], schema: Schema | None, path: Path) -> set[Path]:
    below = schema.get("items", {}) if schema else None
    found: set[Path] = set()
    for item in value:
        here = (*path, item_element(item, keys))
        found.add(here)
        if isinstance(item, dict):
            found |= _paths(item, below, here, "")
    return found


ABSENT = object()


def value_at(obj: Any, path: Path) -> Any:
    """The value under a path, or `ABSENT`."""
    for element in path:
        obj = _step(obj, element)
        if obj is ABSENT:
            return ABSENT
    return obj


def _step(value: Any, element: str) -> Any:
    kind, name = element.split(":", 1)
    if kind == "f":
        return value.get(name, ABSENT) if isinstance(value, dict) else ABSENT
    if not isinstance(value, list):
        return ABSENT
    index = index_of(value, element)
    return ABSENT if index is None else value[index]


def index_of(items: list[Any], element: str) -> int | None:
    """Where in a list the item that a path element names is."""
    kind, text = element.split(":", 1)
    keys = sorted(json.loads(text)) if kind == "k" else []
    fitting = (n for n, item in enumerate(items) if kind == "v" or isinstance(item, dict))
    return next((n for n in fitting if item_element(items[n], keys) == element), None)


def to_trie(paths: set[Path]) -> dict[str, Any]:
    """`fieldsV1` of a set."""
    root: dict[str, Any] = {}
    for path in sorted(paths):
        node = root
        for element in path:
            node = node.setdefault(element, {})
        if any(other[: len(path)] == path and other != path for other in paths):
            node["."] = {}
    return root


def from_trie(node: dict[str, Any], path: Path = ()) -> set[Path]:
    """The set of a `fieldsV1`."""
    if not node:
        return {path} if path else set()
    found: set[Path] = set()
    for element, child in node.items():
        found |= {path} if element == "." else from_trie(child, (*path, element))
    return found


def dotted(path: Path) -> str:
    """A path as a conflict names it: `.spec.containers[name="a"].image`."""
    text = ""
    for element in path:
        kind, name = element.split(":", 1)
        if kind == "f":
            text += f".{name}"
        elif kind == "k":
            text += "[" + ",".join(f"{key}={json.dumps(value)}" for key, value in json.loads(name).items()) + "]"
        else:
            text += f"[={name}]"
    return text

"""Server-side apply: who owns which field, what conflicts, and what goes when its owner lets go of it."""

import copy
import datetime
from typing import Any

from tests.kube.errors import StatusError
from tests.kube.fields import (
    ABSENT,
    Path,
    child_schema,
    dotted,
    field_set,
    from_trie,
    index_of,
    item_element,
    list_keys,
    to_trie,
    value_at,
)
from tests.kube.schema import Schema

Object = dict[str, Any]
Entries = list[dict[str, Any]]


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def server_side_apply(
    live: Object, applied: Object, schema: Schema | None, *, manager: str, force: bool, subresource: str = ""
) -> Object:
    """The object after one manager has applied its fields. Raises 409 naming each conflicting field."""
    entries = copy.deepcopy(live["metadata"].get("managedFields") or [])
    wanted = field_set(applied, schema)
    mine, others = _split(entries, manager, subresource)
    contested = _contested(live, applied, wanted, others)
    if contested and not force:
        raise _conflict(contested)
    merged: Object = _merge(live, applied, schema, (), "")
    for path in sorted(_released(mine, wanted, others), key=len, reverse=True):
        _drop(merged, path)
    taken = {path for _, path in contested}
    kept = [_without(entry, taken) for entry in others]
    entry = _entry(manager, "Apply", live, wanted, mine, subresource)
    merged["metadata"]["managedFields"] = [other for other in kept if other["fieldsV1"]] + [entry]
    return merged


def _split(entries: Entries, manager: str, subresource: str) -> tuple[dict[str, Any] | None, Entries]:
    def ours(entry: dict[str, Any]) -> bool:
        return (entry["manager"], entry["operation"], entry.get("subresource", "")) == (manager, "Apply", subresource)

    return next((entry for entry in entries if ours(entry)), None), [entry for entry in entries if not ours(entry)]


def _contested(live: Object, applied: Object, wanted: set[Path], others: Entries) -> list[tuple[str, Path]]:
    found = []
    for entry in others:
        for path in sorted(wanted & from_trie(entry["fieldsV1"])):
            is_item = path[-1].startswith("k:")
            if not is_item and value_at(live, path) != value_at(applied, path):
                found.append((entry["manager"], path))
    return found


def _conflict(contested: list[tuple[str, Path]]) -> StatusError:
    causes = [
        {"reason": "FieldManagerConflict", "message": f'conflict with "{manager}"', "field": dotted(path)}
        for manager, path in contested
    ]
    noun = "conflict" if len(causes) == 1 else "conflicts"
    listed = "; ".join(f"{cause['message']}: {cause['field']}" for cause in causes)
    return StatusError(409, "Conflict", f"Apply failed with {len(causes)} {noun}: {listed}", causes=causes)


def _released(mine: dict[str, Any] | None, wanted: set[Path], others: Entries) -> set[Path]:
    """Fields this manager applied before and no longer does, and that nobody else owns."""
    if mine is None:
        return set()
    held: set[Path] = set().union(*(from_trie(entry["fieldsV1"]) for entry in others)) | wanted
    gone = from_trie(mine["fieldsV1"]) - wanted
    return {path for path in gone if not any(other[: len(path)] == path for other in held)}


def _merge(live: Any, applied: Any, schema: Schema | None, path: Path, name: str) -> Any:
    atomic = schema is not None and schema.get("x-kubernetes-map-type") == "atomic"
    if isinstance(live, dict) and isinstance(applied, dict) and not atomic:
        merged = dict(live)
        for key, item in applied.items():
            merged[key] = _merge(live.get(key), item, child_schema(schema, key, path), (*path, key), key)
        return merged
    keys = list_keys(name, applied, schema) if isinstance(live, list) and isinstance(applied, list) else None
    if keys is None:
        return copy.deepcopy(applied)
    return _merge_items(live, applied, keys, schema, path)


def _merge_items(live: list[Any], applied: list[Any], keys: list[str], schema: Schema | None, path: Path) -> list[Any]:
    below = schema.get("items", {}) if schema else None
    merged = list(live)
    for item in applied:
        index = index_of(merged, item_element(item, keys))
        if index is None:
            merged.append(copy.deepcopy(item))
        elif keys:
            merged[index] = _merge(merged[index], item, below, (*path, "item"), "")
    return merged


def _drop(obj: Object, path: Path) -> None:
    """Remove a path, and the objects it leaves empty."""
    parent, last = value_at(obj, path[:-1]), path[-1]
    if parent is ABSENT:
        return
    if isinstance(parent, list):
        index = index_of(parent, last)
        if index is not None:
            del parent[index]
    else:
        parent.pop(last.split(":", 1)[1], None)
    if not parent and len(path) > 2:
        _drop(obj, path[:-1])


def _without(entry: dict[str, Any], paths: set[Path]) -> dict[str, Any]:
    return {**entry, "fieldsV1": to_trie(from_trie(entry["fieldsV1"]) - paths)}


def _entry(
    manager: str, operation: str, obj: Object, paths: set[Path], before: dict[str, Any] | None, subresource: str
) -> dict[str, Any]:
    """A `managedFields` row; an unchanged set keeps its time, so that applying twice changes nothing."""
    fields = to_trie(paths)
    same = before is not None and before["fieldsV1"] == fields
    row = {
        "manager": manager,
        "operation": operation,
        "apiVersion": obj["apiVersion"],
        "time": before["time"] if before and same else now(),
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }
    return {**row, "subresource": subresource} if subresource else row


def record_update(
    before: Object | None, after: Object, schema: Schema | None, *, manager: str, subresource: str
) -> None:
    """Give every field that a create, update or patch changed to its writer, in place."""
    entries = copy.deepcopy((before or after)["metadata"].get("managedFields") or [])
    present = field_set(after, schema)
    changed = {path for path in present if before is None or value_at(before, path) != value_at(after, path)}
    mine = next((e for e in entries if _is_update(e, manager, subresource)), None)
    others = [_within(_without(entry, changed), present) for entry in entries if entry is not mine]
    owned = changed | (from_trie(mine["fieldsV1"]) & present if mine else set())
    rows = [entry for entry in others if entry["fieldsV1"]]
    if owned:
        rows.append(_entry(manager, "Update", after, owned, mine, subresource))
    after["metadata"]["managedFields"] = rows


def _is_update(entry: dict[str, Any], manager: str, subresource: str) -> bool:
    return (entry["manager"], entry["operation"], entry.get("subresource", "")) == (manager, "Update", subresource)


def _within(entry: dict[str, Any], present: set[Path]) -> dict[str, Any]:
    return {**entry, "fieldsV1": to_trie(from_trie(entry["fieldsV1"]) & present)}

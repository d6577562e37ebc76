"""What to apply on top of an object that others have written to: what was applied last, what is there, what is wanted.
Pure.

Server-side apply knows the owner of each field, but a list without keys is one field: KubeRay's operator, which writes
a RayJob back as a whole, owns all worker groups from then on, with what it and Kueue have added to them. So what was
applied last is kept in an annotation. Where everything that is wanted is there, nothing is applied; else what others
have added inside such lists is applied along, and their ownership is taken only of what they did nothing else to.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from cluster.k8s.kinds import Manifest
from cluster.k8s.names import LAST_APPLIED, MANAGER
from cluster.k8s.quantity import parse_quantity

ABSENT: Final = object()
KEYS = ("name", "groupName", "mountPath", "containerPort", "port", "ip", "topologyKey")
"""Fields by which items of a list are told apart, where each has it and no two are equal; else their content does."""

AMOUNTS = ("limits", "requests")
"""Maps of quantities, which others write in another form: 1024Mi comes back as 1Gi."""

Path = tuple[str, ...]
Trie = dict[str, Any]
"""A `fieldsV1` of `managedFields`: a leaf is a field that is owned as it stands, a list with all that is in it."""


@dataclass(frozen=True, slots=True)
class Applicable:
    """A manifest as it is to be sent."""

    manifest: Manifest
    force: bool
    """Whether others own fields of it to which they have only added, so that they may be taken."""


def says_all(live: Manifest, wanted: Manifest) -> bool:
    """Whether applying would change nothing: all that is wanted is there, and nothing that is not wanted any more."""
    wanted, before = _plain(wanted), last_applied(live)
    return before in (None, wanted) and _includes(live, wanted, before, ())


def applicable(wanted: Manifest, live: Manifest | None) -> Applicable:
    """What to send so that `wanted` comes true and what others have added stays."""
    noted = _noted(wanted)
    if live is None:
        return Applicable(noted, force=False)
    rows = live["metadata"].get("managedFields") or []
    before = last_applied(live)
    manifest: Manifest = _combined(noted, before, live, _joined(row.get("fieldsV1") or {} for row in rows), ())
    manifest["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
    others = [row.get("fieldsV1") or {} for row in rows if (row["manager"], row["operation"]) != (MANAGER, "Apply")]
    contested = any(True for row in others for _ in _contested(row, manifest, before, live))
    return Applicable(manifest, force=not contested)


def last_applied(live: Manifest) -> Manifest | None:
    """What the annotation tells; None where there is none that can be read."""
    try:
        told = json.loads(live["metadata"].get("annotations", {})[LAST_APPLIED])
    except (KeyError, TypeError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def _noted(wanted: Manifest) -> Manifest:
    """A copy with itself in the annotation."""
    noted = _plain(wanted)
    text = json.dumps(noted, sort_keys=True, separators=(",", ":"))
    noted["metadata"].setdefault("annotations", {})[LAST_APPLIED] = text
    return noted


def _plain(wanted: Manifest) -> Manifest:
    """A copy as it comes back from JSON."""
    copied: Manifest = json.loads(json.dumps(wanted))
    return copied


# What is there.


def _includes(live: Any, wanted: Any, before: Any, path: Path) -> bool:
    """Whether `live` says all that `wanted` says; it may say more."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            _includes(live[key], item, _child(before, key), (*path, key))
            if key in live
            else _empty_as_before(item, _child(before, key))
            for key, item in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(live, list) and _includes_items(live, wanted, before, path)
    return _same(wanted, live, path)


def _empty_as_before(wanted: Any, before: Any) -> bool:
    """A program that reads an object into Go's types and writes it back leaves empty values out."""
    return not wanted and before == wanted


def _includes_items(live: list[Any], wanted: list[Any], before: Any, path: Path) -> bool:
    key = _key(wanted, live)
    if key is not None:
        there = {item[key]: item for item in live}
        earlier = _by(key, before)
        return all(
            item[key] in there and _includes(there[item[key]], item, earlier.get(item[key], ABSENT), path)
            for item in wanted
        )
    left = iter(live)  # In their order: arguments of a command are such a list.
    return all(any(_includes(item, one, one, path) for item in left) for one in wanted)


def _same(wanted: Any, live: Any, path: Path) -> bool:
    if wanted == live:
        return True
    if path[-1:] != ("sizeLimit",) and path[-2:-1] not in {(name,) for name in AMOUNTS}:
        return False
    try:
        return parse_quantity(str(wanted)) == parse_quantity(str(live))
    except ValueError:
        return False


# What to send.


def _combined(wanted: Any, before: Any, live: Any, node: Trie | None, path: Path) -> Any:
    """`wanted`, and within what is owned as a whole (a leaf of `node`) also what others have added to `live`."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        combined = {
            key: item
            if key not in live
            else _combined(item, _child(before, key), live[key], _below(node, key), (*path, key))
            for key, item in wanted.items()
        }
        return combined | (_added(live, wanted, before) if node == {} else {})
    if isinstance(wanted, list) and isinstance(live, list):
        return _combined_items(wanted, before, live, node, path)
    return live if _same(wanted, live, path) else wanted


def _added(live: Manifest, wanted: Manifest, before: Any) -> Manifest:
    """Fields that are neither wanted nor were applied."""
    rest = {key: _foreign(item, _child(before, key)) for key, item in live.items() if key not in wanted}
    return {key: item for key, item in rest.items() if item is not ABSENT}


def _foreign(live: Any, before: Any) -> Any:
    """What of a value that is not wanted any more others have put there; `ABSENT` where it is all ours."""
    if before is ABSENT:
        return live
    rest: Any = ABSENT
    if isinstance(live, dict) and isinstance(before, dict):
        rest = _added(live, {}, before)
    elif isinstance(live, list) and isinstance(before, list):
        rest = _strangers(live, before)
    return rest or ABSENT


def _combined_items(wanted: list[Any], before: Any, live: list[Any], node: Trie | None, path: Path) -> list[Any]:
    key = _key(wanted, live)
    if key is None:
        return wanted if node != {} else _combined_by_content(wanted, before if isinstance(before, list) else [], live)
    there, earlier, names = {item[key]: item for item in live}, _by(key, before), {item[key] for item in wanted}
    items = [
        item
        if item[key] not in there
        else _combined(item, earlier.get(item[key], ABSENT), there[item[key]], _of_item(node, item), path)
        for item in wanted
    ]
    others = [item for item in live if item[key] not in names and item[key] not in earlier]
    return items + (others if node == {} else [])


def _combined_by_content(wanted: list[Any], before: list[Any], live: list[Any]) -> list[Any]:
    """Items without a name: one that is wanted, or the one before in its place, is looked for in what is there."""
    left, gone, items = list(live), list(before), []
    for index, item in enumerate(wanted):
        sought = [item, *before[index : index + 1]]
        found = next((old for one in sought for old in left if _includes(old, one, one, ())), ABSENT)
        if found is not ABSENT:
            left.remove(found)
            gone = _without_first(gone, found)
        items.append(item if found is ABSENT else _combined(item, sought[-1], found, {}, ()))
    return items + _strangers(left, gone)


def _without_first(before: list[Any], live: Any) -> list[Any]:
    """Without the first item that `live` can have been made of."""
    index = next((n for n, one in enumerate(before) if _includes(live, one, one, ())), len(before))
    return before[:index] + before[index + 1 :]


def _strangers(live: list[Any], before: list[Any]) -> list[Any]:
    """Items that are none of those applied before."""
    key = _key(before, live)
    if key is not None:
        names = {item[key] for item in before}
        return [item for item in live if item[key] not in names]
    strangers = []
    for item in live:
        left = _without_first(before, item)
        if len(left) == len(before):
            strangers.append(item)
        before = left
    return strangers


# Who owns what.


def _contested(node: Trie, manifest: Any, before: Any, live: Any, path: Path = ()) -> Iterator[Path]:
    """Fields that their owner has made something else of than adding to what was applied."""
    for element, below in node.items():
        new, old = _step(manifest, element), _step(live, element)
        if element == "." or new is ABSENT:
            continue
        here, earlier = (*path, element), _step(before, element)
        if below:
            yield from _contested(below, new, earlier, old, here)
        elif not element.startswith("k:") and new != old and not _only_added(old, earlier):
            yield here


def _only_added(live: Any, before: Any) -> bool:
    return isinstance(live, dict | list) and before is not ABSENT and _includes(live, before, before, ())


def _joined(tries: Iterable[Trie]) -> Trie:
    joined: Trie = {}
    for trie in tries:
        for element, below in trie.items():
            joined[element] = _joined((joined.get(element, {}), below))
    return joined


def _below(node: Trie | None, name: str) -> Trie | None:
    """Of a field; below a leaf all is leaves, and None is what nobody owns."""
    return node.get(f"f:{name}") if node else node


def _of_item(node: Trie | None, item: Manifest) -> Trie | None:
    """Of one item of a list whose items are owned one by one."""
    if not node:
        return node
    return next((below for element, below in node.items() if _is_item(item, element)), None)


def _is_item(item: Any, element: str) -> bool:
    kind, _, text = element.partition(":")
    return kind == "k" and isinstance(item, dict) and all(item.get(k, v) == v for k, v in json.loads(text).items())


def _step(value: Any, element: str) -> Any:
    kind, _, name = element.partition(":")
    if kind == "f":
        return _child(value, name)
    found = (item for item in value if _is_item(item, element)) if isinstance(value, list) else iter(())
    return next(found, ABSENT)


def _child(value: Any, key: str) -> Any:
    return value.get(key, ABSENT) if isinstance(value, dict) else ABSENT


def _by(key: str, items: Any) -> dict[Any, Any]:
    """Items by their key; none where they are no list of such."""
    rows = items if isinstance(items, list) else []
    return {item[key]: item for item in rows if isinstance(item, dict) and key in item}


def _key(*lists: list[Any]) -> str | None:
    """The field that tells all items of each list apart; None where there is none."""
    return next((key for key in KEYS if all(_tells_apart(key, items) for items in lists)), None)


def _tells_apart(key: str, items: list[Any]) -> bool:
    named = [item.get(key) for item in items if isinstance(item, dict)]
    return None not in named and len(set(map(str, named))) == len(items)

"""Whatever operators add to what was applied: it is no change, and it stays when something else changes."""

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cluster.commands.ownership import applicable, says_all
from cluster.k8s.names import LAST_APPLIED, MANAGER

Object = dict[str, Any]
SCALARS = st.one_of(st.integers(0, 3), st.sampled_from(["", "x", "1Gi"]), st.booleans())
FOREIGN = "foreign"
"""Key and value of what others add."""


def maps(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Object]:
    return st.dictionaries(st.sampled_from("abc"), values, max_size=3)


def named(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Object]]:
    """Items with a name each, as containers and volumes have one."""
    items = st.lists(maps(values), max_size=3)
    return items.map(lambda rows: [{**row, "name": f"n{index}"} for index, row in enumerate(rows)])


VALUES = st.recursive(
    SCALARS,
    lambda one: st.one_of(maps(one), named(one), st.lists(SCALARS, max_size=3), st.lists(maps(one), max_size=3)),
    max_leaves=8,
)


def with_additions(value: Any) -> Any:
    """The value after others have added a field to every map and an item to every list."""
    if isinstance(value, dict):
        return {**{key: with_additions(item) for key, item in value.items()}, FOREIGN: FOREIGN}
    if isinstance(value, list):
        item = {"name": FOREIGN} if value and isinstance(value[0], dict) else FOREIGN
        return [*map(with_additions, value), item]
    return value


def document(groups: Any, **spec: Any) -> Object:
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "g"}, "spec": {"groups": groups, **spec}}


def written_to(wanted: Object) -> Object:
    """What lies there: applied, then written back by an operator that has added to its `groups`, which it owns."""
    live = copy.deepcopy(wanted)
    live["spec"]["groups"] = with_additions(live["spec"]["groups"])
    live["metadata"] |= {"resourceVersion": "7", "annotations": {LAST_APPLIED: json.dumps(wanted)}}
    live["metadata"]["managedFields"] = [
        {"manager": MANAGER, "operation": "Apply", "fieldsV1": {"f:spec": {"f:flag": {}}}},
        {"manager": "operator", "operation": "Update", "fieldsV1": {"f:spec": {"f:groups": {}}}},
    ]
    return live


@given(groups=st.lists(VALUES, max_size=3))
def test_what_others_add_is_no_change(groups: Any) -> None:
    wanted = document(groups, flag=1)
    assert says_all(written_to(wanted), wanted)
    assert not says_all(written_to(wanted), document(groups, flag=2))


@given(groups=st.lists(VALUES, max_size=3))
def test_what_others_add_is_applied_along_with_a_change_elsewhere(groups: Any) -> None:
    live = written_to(document(groups, flag=1))
    sent = applicable(document(groups, flag=2), live)
    assert sent.manifest["spec"] == {"groups": live["spec"]["groups"], "flag": 2}
    assert sent.manifest["metadata"]["resourceVersion"] == "7"
    assert sent.force


@given(groups=st.lists(named(SCALARS), min_size=1, max_size=2))
def test_of_what_is_no_longer_wanted_only_the_additions_stay(groups: Any) -> None:
    wanted = document([{"name": "ranks", "template": groups}])
    (group,) = applicable(document([{"name": "ranks"}]), written_to(wanted)).manifest["spec"]["groups"][:1]
    assert group == {"name": "ranks", FOREIGN: FOREIGN, "template": [FOREIGN]}


def test_a_value_of_ours_that_another_has_changed_is_not_taken() -> None:
    wanted = document([{"name": "ranks", "replicas": 2}])
    live = written_to(wanted)
    live["spec"]["groups"][0]["replicas"] = 1
    assert not says_all(live, wanted)
    assert not applicable(wanted, live).force

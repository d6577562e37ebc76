"""The dashboard and the alerts ask only for what a live scrape has, labels included, and the scrape is valid."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import AggregateExpr, BinaryExpr, Expr, VectorSelector, parse, walk

from tests.api.conftest import serving
from tests.fake_engine import FakeGroup, fake_group
from tests.gateway.conftest import make_config

FOLDER = Path(__file__).parents[2] / "configs" / "grafana"
CONTRACT = {
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "step_seconds": "summary",
    "kv_blocks_used": "gauge",
    "requests_running": "gauge",
    "requests_waiting": "gauge",
    "group_restarts": "counter",
    "http_errors": "counter",
}
"""Names that others rely on, and their kinds; the parser takes a counter's `_total` off."""
FROM_THE_SCRAPE = {"instance", "job"}
"""Labels that Prometheus adds."""
_RANGES = re.compile(r"\$(?:__rate_interval|__range)\b")
"""Variables of Grafana's that stand where PromQL wants a duration."""


@cache
def dashboard() -> Any:
    return json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def queries() -> list[str]:
    asked = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    asked += [one["expr"] for one in dashboard()["annotations"]["list"]]
    asked += [
        re.sub(r"label_values\((\w+), (\w+)\)", r"\1{\2=~'.*'}", variable["definition"])
        for variable in dashboard()["templating"]["list"]
        if "definition" in variable
    ]
    return asked + [rule["expr"] for rule in rules()]


@dataclass
class Asked:
    """What a query asks for."""

    metrics: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)
    """Those that it selects, groups or matches by."""

    def note(self, node: Expr) -> bool:
        if isinstance(node, VectorSelector):
            assert node.name is not None
            self.metrics.add(node.name)
            self.labels |= {matcher.name for matcher in node.matchers.matchers}
        elif isinstance(node, AggregateExpr) and node.modifier:
            self.labels |= set(node.modifier.labels)
        elif isinstance(node, BinaryExpr) and node.modifier:
            matching = node.modifier.matching
            self.labels |= {*(matching.labels if matching else ()), *(node.modifier.group_labels or ())}
        return True


def asked(query: str) -> Asked:
    """Raises `ValueError` where Prometheus would refuse the query."""
    found = Asked()
    walk(parse(_RANGES.sub("5m", query)), found.note)
    return found


@pytest.fixture(scope="module")
def group() -> Iterator[FakeGroup]:
    with fake_group() as group:
        yield group


@pytest.fixture
async def scrape(group: FakeGroup) -> str:
    async with serving(group, make_config()) as (client, _):
        await client.post("/predict", json={"inputs": "one two", "raw": True, "parameters": {"max_tokens": 6}})
        await client.post("/predict", json={})
        return (await client.get("/metrics")).text


async def test_a_scrape_is_valid_and_has_the_names_that_others_rely_on(scrape: str) -> None:
    families = list(text_string_to_metric_families(scrape))
    kinds = {family.name: family.type for family in families}
    assert len(kinds) == len(families)
    assert CONTRACT.items() <= kinds.items()
    assert all(family.documentation and family.samples for family in families)


async def test_every_query_asks_for_metrics_and_labels_that_exist(scrape: str) -> None:
    known: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(scrape):
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    for query in queries():
        found = asked(query)
        assert found.metrics, query
        assert found.metrics <= set(known), query
        assert found.labels <= set.intersection(*(known[name] for name in found.metrics)) | FROM_THE_SCRAPE, query


def test_a_query_is_taken_apart_into_its_metrics_and_labels() -> None:
    query = 'histogram_quantile(0.5, sum by (le, x) (rate(a_bucket{k=~"v", l!="w"}[5m]))) / on (m) b_total > 1 and c'
    assert asked(query) == Asked({"a_bucket", "b_total", "c"}, {"le", "x", "k", "l", "m"})


@pytest.mark.parametrize("query", ["rte(a[5m])", "rate(a)", "sum by (x (a)", "a{b}"])
def test_a_query_that_prometheus_refuses_is_noticed(query: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        asked(query)


def test_the_dashboard_can_be_imported_anywhere() -> None:
    board = dashboard()
    variables = {variable["name"]: variable["type"] for variable in board["templating"]["list"]}
    assert variables["datasource"] == "datasource"
    assert "id" not in board
    sources = [panel["datasource"] for panel in board["panels"]]
    sources += [target["datasource"] for panel in board["panels"] for target in panel["targets"]]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"\$(\w+)", json.dumps(board))) - {"__rate_interval", "__range", "__all"}
    assert used <= set(variables)


def test_no_two_panels_lie_on_one_another() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        place = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & place, panel["title"]
        cells |= place


def test_every_alert_says_what_is_wrong_and_how_bad() -> None:
    assert {"GangwayNotReady", "GangwayRestarts", "GangwayQueueGrows", "GangwayRefuses", "GangwaySlowTokens"} <= {
        rule["alert"] for rule in rules()
    }
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))

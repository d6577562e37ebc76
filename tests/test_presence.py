"""What Serve's details say of a gateway."""

from typing import Any

import pytest

from serving.presence import Presence, lacks_gateway, presence

LIVING = {"head", "worker"}


def application(state: str, node: str | None, *, status: str = "RUNNING", kept_on: str | None = None) -> dict[str, Any]:
    options = {"label_selector": {"ray.io/node-id": kept_on}} if kept_on else {"num_cpus": 0}
    gateway = {
        "replicas": [{"state": state, "node_id": node}],
        "deployment_config": {"ray_actor_options": options},
    }
    return {
        "status": status,
        "last_deployed_time_s": 7.0,
        "route_prefix": "/",
        "deployments": {"gateway": gateway},
    }


def details(**applications: dict[str, Any]) -> dict[str, Any]:
    return {"applications": applications}


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (application("RUNNING", "head"), "alive"),
        (application("RUNNING", "worker", kept_on="worker"), "alive"),
        (application("RUNNING", "gone"), "starting"),
        (application("STARTING", None), "starting"),
        (application("STARTING", "head", status="DEPLOYING"), "starting"),
        (application("STARTING", None, kept_on="worker"), "starting"),
        (application("RUNNING", "head", status="DELETING"), "starting"),
        (application("STARTING", None, kept_on="gone"), "lost"),
        (application("RUNNING", "gone", kept_on="gone"), "lost"),
        (application("STARTING", "head", status="DEPLOY_FAILED"), "lost"),
    ],
)
def test_a_gateway_is_alive_on_a_living_node_and_lost_where_serve_can_never_have_one(
    found: dict[str, Any], state: str
) -> None:
    assert presence(details(gangway=found), "gangway", LIVING) == Presence(state=state, deployed_at=7.0)  # type: ignore[arg-type]


def test_an_application_that_is_not_there_is_lost() -> None:
    assert presence(details(other=application("RUNNING", "head")), "gangway", LIVING) == Presence(state="lost")
    assert presence({}, "gangway", LIVING) == Presence(state="lost")


@pytest.mark.parametrize(
    ("state", "node", "lacking"),
    [
        ("RUNNING", "head", False),
        ("STOPPING", "head", False),
        ("RECOVERING", None, False),
        ("PENDING_MIGRATION", "head", False),
        ("STARTING", "head", True),
        ("STARTING", None, True),
        ("RUNNING", "gone", True),
        ("STOPPING", "gone", True),
    ],
)
def test_a_gateway_that_may_still_answer_what_it_holds_is_not_lacking(
    state: str, node: str | None, lacking: bool
) -> None:
    assert lacks_gateway(details(gangway=application(state, node)), "/predict", LIVING) is lacking


def test_only_paths_of_an_application_without_its_gateway_lack_one() -> None:
    gone = application("STARTING", None)
    other = application("STARTING", None) | {"route_prefix": "/other", "deployments": {"model": {}}}
    both = details(gangway=gone, other=other)
    assert lacks_gateway(both, "/livez", LIVING)
    assert lacks_gateway(both, "/others", LIVING)
    assert not lacks_gateway(both, "/other/x", LIVING)
    assert not lacks_gateway(details(gangway=application("RUNNING", "head")), "/livez", LIVING)
    assert not lacks_gateway({}, "/livez", LIVING)

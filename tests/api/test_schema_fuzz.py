"""schemathesis: what `/openapi.json` says is what the application does, whatever is sent.

In CI the same few requests each time; `SCHEMA_EXAMPLES=2000 pytest tests/api/test_schema_fuzz.py` sends other ones.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

from serving.api.openapi import document
from tests.api.conftest import Server, listening
from tests.fake_engine import fake_group
from tests.gateway.conftest import make_config

_EXAMPLES = os.environ.get("SCHEMA_EXAMPLES")
_SHORT = "model.max_model_len=64"
"""Answers that take no time, though many ask for all the tokens that fit."""
_NOT_CHECKED: list[Any] = [positive_data_acceptance]
"""No schema can say that a prompt has to fit into the context, or that `min_tokens` must not be over `max_tokens`."""

schema = schemathesis.openapi.from_dict(document("Gangway", "0"))
fuzz = settings(
    max_examples=int(_EXAMPLES or 60),
    derandomize=_EXAMPLES is None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def ready() -> Iterator[Server]:
    with fake_group() as group, listening(group, make_config(_SHORT)) as server:
        group.behaviour.tokens_per_step = 64
        yield server


@pytest.fixture(scope="module")
def failed() -> Iterator[Server]:
    with fake_group() as group, listening(group, make_config(_SHORT)) as server:
        assert group.engine is not None
        group.engine.die()
        group.turn("failed", first_failure="rank 1 died")
        yield server


@schema.parametrize()
@fuzz
def test_every_answer_is_one_that_the_schema_names(case: schemathesis.Case[Any], ready: Server) -> None:
    case.call_and_validate(base_url=ready.url, excluded_checks=_NOT_CHECKED)


@schema.parametrize()
@fuzz
def test_so_is_every_answer_while_there_is_no_group(case: schemathesis.Case[Any], failed: Server) -> None:
    response = case.call_and_validate(base_url=failed.url, excluded_checks=[*_NOT_CHECKED, not_a_server_error])
    assert response.status_code != 500

"""A pytest plugin: which tests `make test` runs, and which only `make test-all`.

A test is thorough by its place, unless it is marked `quick`: what takes minutes repeats, over more families, ranks,
faults and hosts, what one quick test of its kind shows on this machine already.
"""

import pytest

THOROUGH = (
    "tests/api/test_schema_fuzz.py",
    "tests/console",
    "tests/distributed",
    "tests/drill/test_runner.py",
    "tests/e2e",
    "tests/fuzz",
    "tests/hosts",
    "tests/kube/test_both_worlds.py",
    "tests/loadtests/test_locust.py",
    "tests/loadtests/test_many_streams.py",
    "tests/runtime/test_forkserver.py",
    "tests/runtime/test_train_reporter.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that need a whole machine come last, so that what is plainly wrong is seen first."""
    for item in items:
        if item.nodeid.startswith(THOROUGH) and item.get_closest_marker("quick") is None:
            item.add_marker("thorough")
    items.sort(key=lambda item: item.nodeid.startswith(("tests/e2e", "tests/hosts")))

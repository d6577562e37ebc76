"""For all tests, on any machine, however busy it is."""

import signal

from hypothesis import settings

from tests.support.skips import pytest_configure
from tests.support.tiers import pytest_collection_modifyitems

__all__ = ["pytest_collection_modifyitems", "pytest_configure"]

# A shell without job control starts what runs in its background with SIGINT ignored. So would be all that the tests
# start, and then tell to stop.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A time limit for each example of a property would let the machine decide the test.
settings.register_profile("gangway", deadline=None)
settings.load_profile("gangway")

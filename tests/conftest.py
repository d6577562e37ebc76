"""For all tests, whoever starts them and however busy the machine is."""

import signal

from hypothesis import settings

# A shell without job control starts what runs in its background with SIGINT ignored. So would be all that the tests
# start, and then tell to stop.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A time limit for each example of a property would let the machine decide the test.
settings.register_profile("gangway", deadline=None)
settings.load_profile("gangway")

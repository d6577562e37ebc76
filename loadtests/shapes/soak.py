"""Soak: all users, and every ten minutes a minute with one alone, in which a server should come back to rest.

What it leaves behind, memory and blocks, is looked at from outside: `tests/e2e/test_soak.py`.
"""

from loadtests.shapes.base import Shape

EVERY_S = 600.0
REST_S = 60.0


class Soak(Shape):
    """For `--run-time` of hours."""

    def users(self) -> int:
        return 1 if self.now % EVERY_S >= EVERY_S - REST_S else int(self.options.num_users)

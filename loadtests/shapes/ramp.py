"""Ramp: from one user to all of them, evenly over the run time."""

from loadtests.shapes.base import Shape


class Ramp(Shape):
    """Finds where latency begins to rise."""

    def users(self) -> int:
        return 1 + int((self.options.num_users - 1) * self.now / self.options.run_time)

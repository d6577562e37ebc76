"""Burst: a quarter of the users, and all of them for five seconds out of every twenty."""

from loadtests.shapes.base import Shape

EVERY_S = 20.0
BURST_S = 5.0
CALM = 0.25
"""Share of the users between bursts."""


class Burst(Shape):
    """`--spawn-rate` should be that of all users within a second, or the burst becomes a slope."""

    def users(self) -> int:
        bursts = self.now % EVERY_S >= EVERY_S - BURST_S
        return int(self.options.num_users) if bursts else max(1, round(CALM * self.options.num_users))

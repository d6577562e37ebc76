"""Step to saturation: raises the arrival rate until the objective breaks, and prints the highest rate that held it.

With `--tags open`: arrivals are an open loop, so a slow server does not slow its load. The rate is the number of
`Arrivals` users times `ARRIVALS_PER_SOURCE`, which holds for any number of workers.
"""

from locust.env import Environment
from locust.stats import StatsEntry, calculate_response_time_percentile, diff_response_time_dicts

from loadtests.search import Climb, Objective, Window
from loadtests.shapes.base import Shape
from loadtests.users import ARRIVALS_PER_SOURCE

ROW = "open"


class Saturation(Shape):
    """Uses the `--slo-…` and `--step-…` options; ends by itself, whatever `--run-time` is."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._climb: Climb | None = None
        self._step_began = 0.0
        self._seen: dict[int, int] = {}
        self._failed = 0

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        options, environment = self.options, self.runner.environment
        if self._climb is None:
            objective = Objective(options.slo_ttft_ms, options.slo_percent)
            self._climb = Climb(objective, options.step_rate, options.max_rate)
            self._begin(environment)
        elif self.now - self._step_began >= options.step_seconds:
            self._climb.judge(self._window(environment, self._climb))
            self._begin(environment)
        if self._climb.over:
            return None
        sources = max(1, round(self._climb.rate / ARRIVALS_PER_SOURCE))
        return sources, float(sources)

    def _begin(self, environment: Environment) -> None:
        self._step_began = self.now
        self._seen = dict(first_tokens(environment).response_times)
        self._failed = environment.stats.get(ROW, "total").num_failures

    def _window(self, environment: Environment, climb: Climb) -> Window:
        times = diff_response_time_dicts(first_tokens(environment).response_times, self._seen)
        count = sum(times.values())
        return Window(
            rate=climb.rate,
            seconds=self.now - self._step_began,
            firsts=count,
            failures=environment.stats.get(ROW, "total").num_failures - self._failed,
            ttft_ms=calculate_response_time_percentile(times, count, climb.objective.percent / 100),
        )


def first_tokens(environment: Environment) -> StatsEntry:
    """The row of first tokens, over the whole run so far."""
    return environment.stats.get(ROW, "TTFT")

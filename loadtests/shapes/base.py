"""What the shapes share: Locust's clock and options, typed, and the end after `--run-time`."""

from argparse import Namespace

from locust import LoadTestShape


class Shape(LoadTestShape):
    """Says how many users there are. `--users`, `--spawn-rate` and `--run-time` keep their meaning."""

    abstract = True
    use_common_options = True

    @property
    def options(self) -> Namespace:
        """The command line."""
        assert self.runner is not None
        options: Namespace | None = self.runner.environment.parsed_options
        assert options is not None
        return options

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return float(self.get_run_time())  # type: ignore[no-untyped-call]

    def tick(self) -> tuple[int, float] | None:
        if self.now >= self.options.run_time:
            return None
        return self.users(), max(1.0, self.options.spawn_rate)

    def users(self) -> int:
        """How many there are now."""
        raise NotImplementedError

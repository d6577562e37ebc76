"""A pytest plugin: where `GANGWAY_CI=1`, a test that was skipped for a reason that is not allowed fails the run.

Whatever CI can install or start must be there, else a test that never runs looks like one that passes.
"""

import os

import pytest

NEEDS_CUDA = "needs CUDA"
NEEDS_AVX512 = "needs a processor with AVX-512 and bfloat16"
ALLOWED = frozenset({NEEDS_CUDA, NEEDS_AVX512})
"""What CI cannot bring about: the machine has it or not."""


class SkipCheck:
    """Collects skips as they are reported, from xdist's workers too."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._note(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.refused and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.refused:
            terminalreporter.section("skips that are not allowed in CI", red=True)
            for line in self.refused:
                terminalreporter.line(line)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        assert isinstance(report.longrepr, tuple)
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason not in ALLOWED:
            self.refused.append(f"{report.nodeid}: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("GANGWAY_CI") == "1":
        config.pluginmanager.register(SkipCheck(), "gangway-skips")

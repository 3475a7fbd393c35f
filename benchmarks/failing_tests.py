"""A pytest plugin: each failure with its reason when it happens, not only at the end, which a run
that is cut off does not reach. Named ``-p benchmarks.failing_tests``."""

import pytest


class FailingTests:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._print(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._print(report)

    def _print(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            terminal = self.config.get_terminal_writer()
            terminal.line()
            terminal.line(f"FAILED {report.nodeid}")
            terminal.line(report.longreprtext)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # xdist's workers report to the process that has none
        config.pluginmanager.register(FailingTests(config))
